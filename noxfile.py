"""`nox`: the tests under each Python and each torch that the package promises. `nox -l` lists the sessions."""

import nox

nox.options.default_venv_backend = "venv"


@nox.session(python=["3.10", "3.11", "3.12", "3.13", "3.14"])
@nox.parametrize("torch", ["2.11", "2.12", "2.13", "2.14", "2.15"])
def tests(session, torch):
    """The README's test command; arguments behind `--` go to pytest."""
    audio = ["torchaudio==2.11.0"] if torch in ("2.11", "2.12") else []  # 2.11.1 does not load there
    session.install(f"torch=={torch}.*", *audio, ".[test]")
    session.run("pytest", "-q", *session.posargs)
