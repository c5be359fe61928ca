import json
import math

import pytest

from ssl_fast import losses, ops, recipes
from ssl_fast.models import LocalizerConfig
from ssl_fast.recipes import Recipe, recipe


@pytest.mark.parametrize("name", recipes.RECIPES)
@pytest.mark.parametrize("method", losses.LOSSES)
def test_every_method_has_every_recipe_and_survives_json(method, name):
    one = recipe(method, name)
    assert isinstance(one.build_loss(), losses.LOSSES[method])
    again = Recipe.from_dict(json.loads(json.dumps(one.to_dict())))
    assert again == one


def test_recipes_of_quickstart_avoid_both_traps_and_published_ones_keep_them():
    for method in recipes.METHODS:
        assert not recipe(method).model.head_bias
        assert recipe(method).pooling_warm_up == (None if method == "slavc" else (0.1, 0.3))
        published = recipe(method, "published")
        assert published.model == LocalizerConfig.published(method) and published.pooling_warm_up is None
        assert (published.optimizer, published.learning_rate, published.decay) == ("adam", 1e-4, "constant")


def test_pooling_is_given_by_name():
    def pooling(**spec):
        return recipe("ssl_align", loss={"pooling": spec}).build_loss().options["pooling"]

    assert pooling(name="max") == ops.Max()
    assert pooling(name="soft_threshold", beta=0.1) == ops.SoftThreshold(0.65, 0.1)


def test_learning_rate_rises_linearly_then_falls_as_a_cosine():
    one = recipe("ssl_align", learning_rate=0.8, warm_up_steps=4)
    assert [one.learning_rate_at(k, 0.0) for k in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])
    assert one.learning_rate_at(100, 0.5) == pytest.approx(0.4)
    assert one.learning_rate_at(100, 1 / 3) == pytest.approx(0.8 * 0.75)  # (1 + cos 60 deg) / 2
    assert one.learning_rate_at(100, 1.0) == pytest.approx(0.0, abs=1e-15)
    constant = recipe("ssl_align", learning_rate=0.8, warm_up_steps=4, decay="constant")
    assert constant.learning_rate_at(3, 0.9) == 0.8
    assert recipe("ssl_align", warm_up_steps=0).learning_rate_at(0, 0.0) == 2e-3


def test_pooling_warm_up_is_a_ramp():
    one = recipe("ez_vsl", pooling_warm_up=(0.1, 0.3))
    expected = {0.0: 1, 0.1: 1, 0.15: 0.75, 0.2: 0.5, 0.3: 0, 1.0: 0}
    assert {p: one.mean_weight_at(p) for p in expected} == pytest.approx(expected)
    step = recipe("ez_vsl", pooling_warm_up=(0.2, 0.2))
    assert (step.mean_weight_at(0.199), step.mean_weight_at(0.2)) == (1.0, 0.0)
    assert recipe("ez_vsl", "published").mean_weight_at(0.0) == 0.0


def test_planned_steps():
    assert recipe("lvs", epochs=3, batch_size=32).steps(100) == 9
    with pytest.raises(ValueError, match="batch_size: expected at most the 20 samples of the set, got 32"):
        recipe("lvs").steps(20)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"method": "foo"},
            "method: expected one of ssl_align, margin_nce, lvs, ez_vsl, slavc, fnac, ssl_tie, got 'foo'",
        ),
        ({"name": "mine"}, "recipe: expected one of quickstart, published, got 'mine'"),
        ({"epochs": 0}, "epochs: expected >= 1, got 0"),
        ({"batch_size": 1}, "batch_size: expected >= 2, a positive and a negative, got 1"),
        ({"learning_rate": math.nan}, "learning_rate: expected > 0, got nan"),
        ({"optimizer": "sgd"}, "optimizer: expected one of adamw, adam, got 'sgd'"),
        ({"pooling_warm_up": (0.5, 0.2)}, "pooling_warm_up: expected 0 <= start <= end <= 1, got (0.5, 0.2)"),
        (
            {"loss": {"pooling": {"name": "median"}}},
            "pooling: expected a dict with a name among mean, soft_threshold, max, got {'name': 'median'}",
        ),
        (
            {"loss": {"pooling": "max"}},
            "pooling: expected a dict with a name among mean, soft_threshold, max, got 'max'",
        ),
        ({"method": "lvs", "views": 2}, "views: only ssl_align compares several views, got 2 for lvs"),
        ({"momentum_decay": 0.9}, "momentum_decay: only slavc has momentum nets, got 0.9 for ssl_align"),
        ({"method": "slavc", "pooling_warm_up": (0.1, 0.3)}, "pooling_warm_up: slavc has none, got (0.1, 0.3)"),
        ({"crop_area": 0.0}, "crop_area: expected in (0, 1], got 0.0"),
        ({"model": LocalizerConfig.small("lvs")}, "model: expected a localizer for ssl_align, got one for lvs"),
    ],
)
def test_bad_fields_are_named(changes, message):
    arguments = {"method": "ssl_align", **changes}
    with pytest.raises(ValueError) as error:
        recipe(arguments.pop("method"), arguments.pop("name", "quickstart"), **arguments)
    assert str(error.value) == message


def test_unknown_fields_and_options_are_named():
    with pytest.raises(ValueError, match="expected the fields of Recipe, got colour"):
        Recipe.from_dict(recipe("lvs").to_dict() | {"colour": 1})
    with pytest.raises(TypeError, match="lvs: expected options among .*, got taw"):
        recipe("lvs", loss={"taw": 1.0}).build_loss()
