"""Which code made a result, of a checkout in every state; in processes of their own, because the package finds itself."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from projects import REPOSITORY, git, run

PASTED = "hf_" + "aB3" * 11 + "x"
STATE = "import json, sys; from pathlib import Path; from post_training.core import code; print(json.dumps(code.state(Path(sys.argv[1]))))"
LIGHT = ("__init__.py", "code.py", "secrets.py", "fingerprint.py")


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A repository with what the module needs of the package."""
    package = tmp_path / "checkout" / "src" / "post_training" / "core"
    package.mkdir(parents=True)
    for name in LIGHT:
        shutil.copy(REPOSITORY / "src" / "post_training" / "core" / name, package)
    (package.parent / "__init__.py").touch()
    top = tmp_path / "checkout"
    (top / "Snakefile").write_text("one\ntwo\n")
    git(top, "init", "-q")
    git(top, "add", ".")
    git(top, "commit", "-q", "-m", "all")
    (tmp_path / "stage").mkdir()
    return top


def state(checkout: Path) -> dict | None:
    """What a stage's manifest would say; `code.diff` is in `stage/` then."""
    done = run(checkout, sys.executable, "-B", "-c", STATE, str(checkout.parent / "stage"))
    assert done.returncode == 0, done.stdout
    return json.loads(done.stdout)


def test_a_clean_checkout(checkout):
    (checkout / "stage.diff").write_text("beside the code")
    (checkout.parent / "stage" / "code.diff").write_text("of an earlier attempt")
    assert state(checkout) == {"commit": git(checkout, "rev-parse", "HEAD").strip(), "dirty": False}
    assert not (checkout.parent / "stage" / "code.diff").exists()


def test_changes_are_kept_as_a_patch_that_applies(checkout):
    (checkout / "Snakefile").write_text("one\nchanged\n")
    (checkout / "src" / "post_training" / "core" / "secrets.py").open("a").write("# more\n")
    (checkout / "src" / "new.py").write_text("new = 1\n")
    found, patch = state(checkout), checkout.parent / "stage" / "code.diff"
    assert found["dirty"] and found["diff"]["path"] == "code.diff" and "cut_from_bytes" not in found["diff"]
    assert found["diff"]["bytes"] == patch.stat().st_size
    git(checkout.parent, "clone", "-q", "checkout", "clone")
    clone = checkout.parent / "clone"
    git(clone, "apply", str(patch))
    for name in ("Snakefile", "src/post_training/core/secrets.py", "src/new.py"):
        assert (clone / name).read_text() == (checkout / name).read_text()


def test_secrets_in_it_are_masked(checkout):
    (checkout / "Snakefile").write_text(f"one\ntwo\ntoken = '{PASTED}'\n")
    (checkout / "src" / "new.py").write_text(f"url = 'https://me:pass-word@site.org'\nkey = '{PASTED}'\n")
    assert state(checkout)["dirty"]
    text = (checkout.parent / "stage" / "code.diff").read_text()
    assert PASTED not in text and "pass-word" not in text
    assert "+token = '***'" in text and "+url = 'https://***@site.org'" in text


def test_a_long_patch_is_cut_and_says_so(checkout):
    (checkout / "src" / "new.py").write_text("x = 1\n" * 300_000)
    found = state(checkout)
    assert found["diff"]["bytes"] == 1 << 20 < found["diff"]["cut_from_bytes"]


def test_a_package_outside_of_git_or_below_somebody_elses(checkout):
    shutil.move(checkout / ".git", checkout.parent / "git")
    assert state(checkout) is None
    git(checkout, "init", "-q")  # a repository that does not know the package
    (checkout / "README").write_text("x")
    git(checkout, "add", "README")
    git(checkout, "commit", "-q", "-m", "theirs")
    assert state(checkout) is None
