import io
import json
import os
import subprocess
import sys

import pytest
from tiny import pipeline_of

from post_training.config import resolve
from post_training.core import secrets
from post_training.core.errors import ConfigError, UserError
from post_training.core.fingerprint import write_atomically

HF = "hf_" + "aB3" * 11 + "x"
TOKENS = [
    HF,
    "wandb_v1_" + "k3Y" * 10,
    "ghp_" + "a1B2" * 9,
    "sk-" + "a1B2" * 9,
    "AKIA" + "ABCD1234" * 2,
]


@pytest.mark.parametrize("token", TOKENS)
def test_a_token_is_masked_wherever_it_stands(token):
    text = f"got 401 for {token}, check it"
    assert secrets.mask(text) == "got 401 for ***, check it"
    assert secrets.find(text)


def test_the_password_of_an_address_is_masked_and_the_address_stays():
    shown = secrets.mask("proxy http://me:s3cret@proxy.site:8080/x and https://huggingface.co/a:b")
    assert shown == "proxy http://***@proxy.site:8080/x and https://huggingface.co/a:b"


@pytest.mark.parametrize(
    "signed",
    [
        "https://b.s3.amazonaws.com/rows.jsonl?X-Amz-Expires=60&X-Amz-Signature={}",
        "https://a.blob.core.windows.net/c/rows.jsonl?sv=2024-11-04&sig={}",
        "https://storage.googleapis.com/b/rows.jsonl?X-Goog-Signature={}",
        "https://example.org/rows.jsonl?access_token={}&page=2",
    ],
)
def test_what_signs_an_address_is_masked(signed):
    url = signed.format("0f1e2d3c4b5a69788796a5b4")
    assert secrets.find(url) == "a signed URL"
    shown = secrets.mask(url)
    assert "0f1e2d3c" not in shown and shown.startswith(url.partition("?")[0])
    assert secrets.find_in({"data": {"path": url}}) == ("data.path", "a signed URL")


def test_values_of_the_environment_are_masked_without_any_form(monkeypatch):
    key = "0123456789abcdef0123456789abcdef01234567"  # of W&B: looks like a commit
    assert secrets.mask(f"commit {key}") == f"commit {key}"
    monkeypatch.setenv("WANDB_API_KEY", key)
    assert secrets.mask(f"key {key}") == "key ***"


@pytest.mark.parametrize(
    "text",
    [
        "hf_transfer and hf_hub_download",
        "<|im_end|>",
        "data.special_tokens_in_content=encode_as_text",
        "a time 12:30@noon",
        "https://huggingface.co/datasets/org/name@main",
        "sk-learn",
        "https://example.org/search?q=signature&page=12345678",
        "git@github.com:org/repo.git",
    ],
)
def test_ordinary_text_stays(text):
    assert secrets.mask(text) == text and secrets.find(text) is None


def test_libraries_in_a_page_stay_as_they_are():
    from plotly.offline import get_plotlyjs

    assert secrets.mask(get_plotlyjs()) == get_plotlyjs()


@pytest.mark.parametrize(
    "changes,key",
    [
        ({"model__name_or_path": f"https://user:{HF}@huggingface.co/m"}, "model.name_or_path"),
        ({"training__trainer_args": {"hub_token": "whatever1"}}, "training.trainer_args.hub_token"),
        ({"slurm__extra": f"--export=HF_TOKEN={HF}"}, "slurm.extra"),
        ({"data__datasets": [{"path": "a.jsonl", "transform": {"name": "t", "api_key": "0123456789abc"}}]},
         "data.datasets[0].transform.api_key"),
        ({"slurm__container": {"bind": ["/a", f"/{HF}"]}}, "slurm.container.bind[1]"),
    ],
)  # fmt: skip
def test_a_configuration_that_holds_one_is_refused_by_name(tmp_path, changes, key):
    with pytest.raises(ConfigError) as error:
        pipeline_of(tmp_path / "t.jinja", **changes)
    assert str(error.value).startswith(f"config error: {key}: holds ")
    assert "secrets come from the environment only" in str(error.value)
    assert HF not in str(error.value) and "whatever1" not in str(error.value)


def test_one_that_comes_from_the_environment_by_interpolation_too(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "no-form-at-all-0815")
    with pytest.raises(ConfigError, match=r"logging.wandb_project: holds a secret of the environment"):
        pipeline_of(tmp_path / "t.jinja", logging__wandb_project="${oc.env:HF_TOKEN}")


def test_control_tokens_and_counts_are_no_secrets(tmp_path):
    arguments = {"name": "t", "eos_token": "<|endoftext|>", "user_token": "<|user|>", "tokens": "many-of-them"}
    pipeline_of(tmp_path / "t.jinja", data__datasets=[{"path": "a.jsonl", "transform": arguments}])


def test_errors_do_not_repeat_one(tmp_path):
    assert HF not in str(UserError(f"cannot use {HF}"))
    with pytest.raises(UserError) as error:
        resolve({"training": {"max_steps": HF}})
    assert HF not in str(error.value)


def test_a_worker_process_prints_none(tmp_path):
    """What a user's transform prints, and where several processes apply it."""
    (tmp_path / "said.py").write_text(
        "import os, sys\nfrom pathlib import Path\nfrom post_training.data.pool import Pool\n"
        "def say(*words):\n    word = words[-1]\n    print(word, os.environ['HF_TOKEN'], flush=True)\n"
        "    print(word, os.environ['HF_TOKEN'], file=sys.stderr, flush=True)\n"
        "if __name__ == '__main__':\n    with Pool(2, say, ('start',), [], Path('x')) as pool:\n        list(pool.in_order(say, [('row',)]))\n"
    )
    environment = {**os.environ, "HF_TOKEN": "no-form-at-all-0815"}
    done = subprocess.run([sys.executable, "said.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == done.stderr == "start ***\nrow ***\n"


def test_nothing_that_is_printed_or_written_holds_one(monkeypatch, tmp_path):
    sink = io.StringIO()
    monkeypatch.setattr(sys, "stdout", sink)
    with secrets.masked_output():
        print("token", HF, flush=True)
        sys.stdout.writelines([HF, "\n"])
    assert sink.getvalue() == "token ***\n***\n"
    write_atomically(tmp_path / "a.json", json.dumps({"key": HF}))
    assert json.loads((tmp_path / "a.json").read_text()) == {"key": "***"}


def test_one_that_is_written_in_two_pieces_is_masked_too(monkeypatch):
    sink = io.StringIO()
    monkeypatch.setattr(sys, "stderr", sink)
    with secrets.masked_output():
        sys.stderr.write(f"token {HF[:9]}")
        sys.stderr.write(f"{HF[9:]}\nstep 1")
        assert sink.getvalue() == "token ***\n"
        sys.stderr.flush()
        assert sink.getvalue() == "token ***\nstep 1"
        print(" of 2", end="", file=sys.stderr)
    assert sink.getvalue() == "token ***\nstep 1 of 2"
