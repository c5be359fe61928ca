import json
import math

import pytest

from ssl_fast import losses, ops
from ssl_fast.data.io.front_ends import FRONT_ENDS
from ssl_fast.models import LocalizerConfig
from ssl_fast.training import loss_options, recipes
from ssl_fast.training.recipes import Recipe, recipe


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
        assert recipe(method).pooling_warm_up == (None if method in ("slavc", "sspl") else (0.1, 0.3))
        published = recipe(method, "published")
        assert published.model == LocalizerConfig.published(method) and published.pooling_warm_up is None
        optimizer = "adamw" if method == "sspl" else "adam"
        assert (published.optimizer, published.learning_rate, published.decay) == (optimizer, 1e-4, "constant")


# Optimisation and preprocessing of methods' papers and programs; what they leave open (None) is not compared.
PUBLISHED = {
    # method: epochs, batch, weight decay, front end (seconds, hop, mel), augmentation, masks, views
    "ez_vsl": (20, 128, 0.0, (3.0, 238, False), "ez_vsl", "none", 1),
    "slavc": (20, 128, 0.0, (3.0, 238, False), "ez_vsl", "none", 1),
    "fnac": (30, 256, 1e-4, (3.0, 238, False), "ez_vsl", "fnac", 1),
    "margin_nce": (20, None, None, (3.0, 238, False), None, "none", 1),
    "lvs": (None, None, None, (10.0, 238, False), "ez_vsl", "none", 1),
    "ssl_tie": (100, 32, 1e-4, (10.0, 239, True), "moco_v2", "ssl_tie", 1),
    "ssl_align": (50, None, None, (3.0, 159, False), "simclr", "none", 3),
    "hard_positives": (None, None, None, None, None, "none", 2),
    "sspl": (20, 256, 1e-4, None, "ez_vsl", "none", 2),
}


@pytest.mark.parametrize("method", PUBLISHED)
def test_published_recipes_are_those_of_the_papers(method):
    one = recipe(method, "published")
    heard = FRONT_ENDS[one.front_end]
    got = (
        one.epochs,
        one.batch_size,
        one.weight_decay,
        (heard.seconds, heard.hop, heard.mel),
        one.augmentation,
        one.masks,
        len(one.views),
    )
    assert all(g == e for g, e in zip(got, PUBLISHED[method]) if e is not None)
    assert (one.momentum_decay, one.model.visual_dropout) == {"slavc": (0.999, 0.9), "fnac": (None, 0.9)}.get(
        method, (None, 0.0)
    )
    steps = one.steps(10 * one.batch_size)
    assert sum(one.leaves_out_l1_at(k / steps) for k in range(steps)) == (50 if method == "fnac" else 0)  # 5 epochs
    assert one.time_shift == ((0.1, 0.5) if method == "ssl_align" else None)


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


expected_pooling = f"expected a name (in Python a dict with it) among {', '.join(loss_options.POOLINGS)}"


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"method": "foo"},
            "method: expected one of ssl_align, margin_nce, lvs, ez_vsl, slavc, fnac, ssl_tie, "
            "hard_positives, sspl, dense_av, got 'foo'",
        ),
        ({"name": "mine"}, "recipe: expected one of quickstart, published, got 'mine'"),
        ({"epochs": 0}, "epochs: expected 1 to 1000000, got 0"),
        ({"image_size": 10**12}, "image_size: expected 2 to 8192, got 1000000000000"),
        ({"image_size": 1}, "image_size: expected 2 to 8192, got 1"),
        ({"epochs": 10**12}, "epochs: expected 1 to 1000000, got 1000000000000"),
        ({"batch_size": 1}, "batch_size: expected >= 2, a positive and a negative, got 1"),
        ({"learning_rate": math.nan}, "learning_rate: expected > 0, got nan"),
        ({"optimizer": "sgd"}, "optimizer: expected one of adamw, adam, got 'sgd'"),
        ({"pooling_warm_up": (0.5, 0.2)}, "pooling_warm_up: expected 0 <= start <= end <= 1, got (0.5, 0.2)"),
        ({"loss": {"pooling": {"name": "median"}}}, f"pooling: {expected_pooling}, got {{'name': 'median'}}"),
        ({"loss": {"pooling": "max"}}, f"pooling: {expected_pooling}, got 'max'"),
        ({"method": "lvs", "views": ("original", "augmented")}, "views: lvs compares 1, got original, augmented"),
        ({"method": "hard_positives", "views": ("augmented",)}, "views: hard_positives compares 2, got augmented"),
        ({"method": "sspl", "pooling_warm_up": (0.1, 0.3)}, "pooling_warm_up: sspl has none, got (0.1, 0.3)"),
        ({"views": ()}, "views: expected some of original, augmented, conceptual, got ()"),
        ({"views": 2}, "views: expected some of original, augmented, conceptual, got 2"),
        ({"views": ("twin",)}, "views: expected some of original, augmented, conceptual, got ('twin',)"),
        ({"masks": "mine"}, "masks: expected one of none, ssl_tie, fnac, fnac_released, silence, got 'mine'"),
        (
            {"augmentation": "cutout"},
            "augmentation: expected one of none, shift, crop, ez_vsl, moco_v1, moco_v2, simclr, got 'cutout'",
        ),
        (
            {"augmentation": "simclr", "time_shift": (0.5, 0.1)},
            "time_shift: expected 0 <= low <= high in seconds, got (0.5, 0.1)",
        ),
        (
            {"time_shift": (0.1, 0.5)},
            "time_shift: expected with an augmentation among ez_vsl, moco_v1, moco_v2, simclr, got 'shift'",
        ),
        ({"momentum_decay": 0.9}, "momentum_decay: only slavc has momentum nets, got 0.9 for ssl_align"),
        ({"method": "slavc", "pooling_warm_up": (0.1, 0.3)}, "pooling_warm_up: slavc has none, got (0.1, 0.3)"),
        ({"nce_epochs": 1}, "nce_epochs: only fnac has L1 terms to wait with, got 1 for ssl_align"),
        (
            {"method": "fnac", "epochs": 3, "nce_epochs": 3},
            "nce_epochs: expected >= 0 and fewer than the 3 epochs of the run, or fnac's L1 terms never come, got 3",
        ),
        ({"crop_area": 0.0}, "crop_area: expected in (0, 1], got 0.0"),
        ({"model": LocalizerConfig.small("lvs")}, "model: expected a localizer for ssl_align, got one for lvs"),
        ({"method": "dense_av", "loss": {"scale": 1e3}}, "scale: expected within [0.01, 100], got 1000.0"),
        (
            {"method": "dense_av", "loss": {"paired": True, "pooling": {"name": "mean"}}},
            "loss: pooling: no effect with paired=true",
        ),
        (
            {"method": "ssl_tie", "loss": {"hard_negative": False, "epsilon_negative": 0.3}},
            "loss: epsilon_negative: no effect with hard_negative=false",
        ),
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


def test_loss_options_go_over_those_of_the_recipe():
    assert recipe("ez_vsl", loss={"margin": -0.2}).loss == {"tau": 0.07, "margin": -0.2}
    assert recipe("ez_vsl", loss={"tau": 0.2}).build_loss().options["tau"] == 0.2
    assert recipe("margin_nce", "published", loss={"symmetric": True}).loss == {"symmetric": True}


def test_without_alignment_there_are_no_projections():
    one = recipe("ssl_align", "published", loss={"alignment": False})
    assert one.model == LocalizerConfig.published("ssl_align", projection=None)
    assert Recipe.from_dict(json.loads(json.dumps(one.to_dict()))) == one


def test_mean_weight_of_a_loss_is_where_its_warm_up_ends():
    one = recipe("ez_vsl", loss={"mean_weight": 0.2}, pooling_warm_up=(0.1, 0.3))
    assert [one.mean_weight_at(p) for p in (0.1, 0.2, 0.3, 1.0)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert recipe("ez_vsl", "published", loss={"mean_weight": 0.2}).mean_weight_at(0.0) == 0.2


def test_loss_options_are_read_from_text():
    expected = {"margin": -0.2, "symmetric": True, "reduce": "max", "weights": (100.0, 1.0, 0.0), "tau": 0.1}
    assert loss_options.read(["margin=-0.2, symmetric=true,reduce=max", "weights=1e2,1,0,tau=.1"]) == expected
    pooling = {"pooling": {"name": "soft_threshold", "beta": 0.1}}
    assert loss_options.read(["pooling=soft_threshold,pooling.beta=0.1"]) == pooling
    for text in ("margin", "", "=1", "tau=1,tau=2", "0.1,tau=2"):
        with pytest.raises(ValueError, match="loss: expected NAME=VALUE,NAME=VALUE with each name once, got "):
            loss_options.read([text])


# Every setting that the papers' ablations vary, by what `--loss` is given.
SETTINGS = {
    "margin_nce": "margin=0.2,epsilon=.6,beta=.1,tau=.05,symmetric=true,mean_weight=.5",
    "lvs": "tri_map=false,hard_negative=false,diagonal=released,margin=-.3",
    "ez_vsl": "margin=-.2,tau=.05,mean_weight=.1",
    "slavc": "reduce=max,negatives=image,tau=.05",
    "fnac": "weights=100,100,0,threshold=.5",
    "ssl_tie": "weight=2,detach_map=true,epsilon_negative=.3,diagonal=released",
    "ssl_align": "pooling=max,alignment=false,symmetric=false,tau=.1",
    "hard_positives": "combine=sum,epsilon=.6,margin=-.2",
}


@pytest.mark.parametrize("method", SETTINGS)
def test_ablations_of_the_papers_are_options(method):
    options = loss_options.read([SETTINGS[method]])
    built = recipe(method, "published", loss=options).build_loss().options
    assert {name: built[name] for name in options} == options | ({"pooling": ops.Max()} if "pooling" in options else {})


@pytest.mark.parametrize(
    "method, text, message",
    [
        (
            "ez_vsl",
            "taw=1",
            "ez_vsl has no option 'taw', it takes tau (a number > 0), margin (a number), mean_weight (a ",
        ),
        (
            "slavc",
            "mean_weight=0",
            "slavc has no option 'mean_weight', it takes tau (a number > 0), reduce (sum or max), ",
        ),
        ("fnac", "return_terms=true", "fnac has no option 'return_terms', it takes tau (a number > 0), threshold (a "),
        ("sspl", "tau=1", "sspl has no option 'tau', it takes none"),
        ("lvs", "momentum=1", "lvs has no option 'momentum', it takes epsilon (a number), "),
        ("ez_vsl", "tau=0", "tau: expected a number > 0, got 0.0"),
        ("ez_vsl", "tau=nan", "tau: expected a number > 0, got nan"),
        ("lvs", "beta=true", "beta: expected a number > 0, got True"),
        ("lvs", "margin=low", "margin: expected a number, got 'low'"),
        ("lvs", "margin=1,2", "margin: expected a number, got (1.0, 2.0)"),
        ("lvs", "tri_map=1", "tri_map: expected true or false, got 1.0"),
        ("lvs", "diagonal=kept", "diagonal: expected excluded or released, got 'kept'"),
        ("fnac", "weights=1,2", "weights: expected 3 numbers, got (1.0, 2.0)"),
        ("ez_vsl", "mean_weight=2", "mean_weight: expected a number within [0, 1], got 2.0"),
        ("ssl_align", "pooling.beta=1", "pooling: expected a name (in Python a dict with it) among "),
        ("ssl_align", "pooling=max,pooling.beta=1", "pooling: expected no options with 'max', got beta=1.0"),
        ("ssl_align", "pooling=mean,pooling.mask=1", "pooling: expected no options with 'mean', got mask=1.0"),
        (
            "ssl_align",
            "pooling=soft_threshold,pooling.beta=x",
            "pooling: expected numbers for epsilon and beta with 'soft_threshold', got beta='x'",
        ),
        ("ssl_align", "pooling=soft_threshold,pooling.beta=0", "beta: expected > 0, got 0.0"),
    ],
)
def test_bad_loss_options_are_named(method, text, message):
    with pytest.raises(ValueError) as error:
        recipe(method, loss=loss_options.read([text]))
    assert message in str(error.value) and "\n" not in str(error.value)
