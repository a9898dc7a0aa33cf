"""The pages of a sweep of the demo, shrunk: three betas and two seeds, trained for real, and opened in a browser.

Data, SFT and the reference are made once. Two rows try to run a script on the page.
"""

import json
import re
import shutil
import statistics
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tiny import make_here

from post_training.config import load_file, resolve, resolve_runs
from post_training.plan import make_graph, make_plan

REPOSITORY = Path(__file__).resolve().parents[2]
SWEEP = {"dpo.beta": [0.05, 0.1, 0.3], "dpo.training.seed": [0, 1]}
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.slow


def inject(path: Path) -> None:
    """Put the script into what the user says in the first row of each file."""
    lines = path.read_text().splitlines()
    row = json.loads(lines[0])
    if "prompt" in row:
        row["prompt"] = HOSTILE
    else:
        row["messages"][0]["content"] = HOSTILE
    path.write_text("\n".join([json.dumps(row), *lines[1:]]) + "\n")


def project(folder: Path) -> dict:
    """The demo as a directory of its own, and its configuration at toy size."""
    for name in ("Snakefile", "workflow", "profiles", "envs", "config"):
        (shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy)(REPOSITORY / name, folder / name)
    config = load_file(folder / "config/config.yaml") | {"method": "dpo", "run_name": "tiny", "sweep": SWEEP}
    config["model"]["from_scratch"]["config"] |= {"num_hidden_layers": 1, "hidden_size": 32}
    config["dpo"]["model"] = {"lora": {"r": 4}}  # whose start the seed decides
    config["training"] |= {"max_steps": 3}
    config["dpo"]["training"] |= {"max_steps": 4}
    config |= {"logging": {"logging_steps": 1, "report_to": ["none"]}, "accelerate": {"use_cpu": True}}
    config["evaluation"] |= {"max_samples": 4, "max_new_tokens": 2}
    config["data"]["num_proc"] = 1
    for entry in config["evaluation"]["datasets"]:
        inject(folder / entry["path"])
    return config


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Folder of the project, its graph, and what Snakemake said before it all and when it made the pages."""
    folder = tmp_path_factory.mktemp("demo")
    config = project(folder)
    (folder / "my.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        graph = make_graph(resolve_runs(config))
        snakemake = str(Path(sys.executable).with_name("snakemake"))
        command = [snakemake, "all", "report", "-n", "--configfile", "my.yaml"]
        planned = subprocess.run(command, capture_output=True, text=True, check=True)
        for plan in graph.plans.values():
            make_here(plan, plan.report)
        command = [snakemake, "all", "report", "-c2", "--configfile", "my.yaml"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        # Snakemake's own report, with our pages in it.
        command = [snakemake, "report", "--configfile", "my.yaml", "--report", "snakemake.zip"]
        reported = subprocess.run(command, capture_output=True, text=True)
        assert reported.returncode == 0, reported.stderr[-4000:]
    return folder, graph, planned.stdout + planned.stderr, done.stderr


def test_common_stages_are_made_once(swept):
    folder, _, planned, said = swept
    base = folder / "outputs"
    jobs = dict(re.findall(r"^(\w+) +(\d+)  ", planned, re.M))
    assert {rule: jobs[rule] for rule in ("reference", "train", "export", "report_page", "compare_runs")} == {
        "reference": "1", "train": "7", "export": "7", "report_page": "6", "compare_runs": "1",
    }  # fmt: skip
    assert len(list(base.glob("sft-*/manifest.json"))) == len(list(base.glob("data/reference/*/manifest.json"))) == 1
    assert len(list(base.glob("dpo-*/manifest.json"))) == 6
    assert "6 runs: 36 stages, 18 of them shared (126 if each run had its own); 0 are yet to be made" in said
    assert re.search("^done +compare ", said, re.M) and not re.search("^done +train ", said, re.M)
    assert "comparison: outputs/tiny-comparison/report.html" in said
    assert (base / "tiny-beta0.3-seed1" / "model" / "model.safetensors").exists()


def test_the_comparison_shows_the_spread_over_seeds(swept):
    folder, *_ = swept
    compared = folder / "outputs" / "tiny-comparison"
    summary = json.loads((compared / "summary.json").read_text())
    assert (summary["keys"], summary["seeds"]) == (["dpo.beta", "dpo.training.seed"], ["dpo.training.seed"])
    assert [group["values"] for group in summary["groups"]] == [{"dpo.beta": beta} for beta in (0.05, 0.1, 0.3)]
    for group in summary["groups"]:
        rows = [row for row in summary["runs"] if row["name"] in group["runs"]]
        (title,) = (title for title in summary["measures"] if title.endswith("preference accuracy"))
        values = [row["measures"][title] for row in rows]
        assert len(values) == 2 and group["spread"][title]["std"] == pytest.approx(statistics.stdev(values))
    # What scales with beta is no measure of quality.
    assert not [title for title in summary["measures"] if "loss, last" in title or "margin" in title]
    page = (compared / "report.html").read_text()
    assert "<title>tiny-comparison</title>" in page
    in_training = [row["measures"]["rewards/accuracies in training"] for row in summary["runs"]]
    assert all(f"{100 * share:.1f} %</td>" in page for share in in_training)
    assert "Spread over seeds" in page and all(row["name"] in page for row in summary["runs"])
    for row in summary["runs"]:
        assert (compared / row["page"]).resolve().is_file()
        own = folder / "outputs" / row["name"] / "report.html"  # a link that users find
        assert f"<h1>{row['name']}</h1>" in own.read_text() and own.is_symlink()
        assert row["model"] == f"outputs/{row['name']}/model"
    # One file of plotly.js for all of them.
    assert len(list((folder / "outputs").rglob("plotly-*.js"))) == 1
    assert max(path.stat().st_size for path in (folder / "outputs").rglob("report.html")) < 1_500_000


def test_the_numbers_of_a_run_are_those_of_its_stages(swept):
    folder, graph, *_ = swept
    plan = graph.first
    summary = json.loads((folder / "outputs" / plan.report.directory / "summary.json").read_text())
    assert summary["models"] == ["base", "sft", "dpo"]
    for stage in summary["stages"]:
        trained = json.loads((folder / "outputs" / plan.trained[stage["name"]].manifest).read_text())
        assert stage["facts"]["steps"] == trained["steps"] == stage["curves"]["loss"]["step"][-1]
        assert stage["facts"]["tokens"] == trained["tokens"] == stage["curves"]["loss"]["tokens"][-1]
        assert {"loss", "grad_norm", "learning_rate", "tokens_per_second", "peak_memory_bytes"} <= set(stage["curves"])
        (start,) = stage["elapsed"]["starts"]
        assert (start["step"], start["end_step"], start["why"]) == (0, trained["steps"], "done")
        assert stage["elapsed"]["saving_seconds"] > 0 and stage["elapsed"]["first_step_seconds"] > 0
        for dataset in stage["data"]:
            assert sum(dataset["lengths"]["counts"]) == dataset["rows_in"] - sum(dataset["dropped"].values())
    assert set(summary["stages"][1]["curves"]) >= {"rewards/margins", "rewards/accuracies", "rewards/chosen"}
    assert summary["lineage"]["root"] in summary["lineage"]["stages"]
    assert {cost["stage"] for cost in summary["costs"]} >= {
        "download",
        "tokenize",
        "mix",
        "train",
        "export",
        "evaluate",
    }
    assert summary["totals"]["gpu_hours"] == 0 and summary["totals"]["seconds"] > 0
    for found in summary["evaluations"].values():
        assert set(found) == {"base", "sft", "dpo"}


def test_snakemake_has_the_pages_in_its_own_report(swept):
    folder, graph, *_ = swept
    unpacked = folder / "unpacked"
    shutil.unpack_archive(folder / "snakemake.zip", unpacked)
    assert len([path for path in unpacked.rglob("report.html") if "Spread over seeds" in path.read_text()]) == 1
    pages = [path.read_text() for path in unpacked.rglob("report.html") if "raw" in path.parts]  # not Snakemake's own
    assert sum("Preflight: predicted vs. measured" in page for page in pages) == len(graph.plans)
    assert all(
        '<meta name="library"' not in page and len(page) > 3_000_000 for page in pages
    )  # each with its own plotly.js


@contextmanager
def opened(path: Path, **options):
    """A page in Chromium; raises for what it says on its console, and for any request."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(**options).new_page()
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.absolute().as_uri())
        page.wait_for_selector("html[data-drawn=yes]")
        yield page
        shared = [url for url in asked if not re.fullmatch(r"file://.*/outputs/plotly-[\d.]+\.min\.js", url)]
        assert said == [] and shared == [path.absolute().as_uri()]
        browser.close()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("which", ["run", "comparison"])
@pytest.mark.parametrize(
    "options",
    [{"viewport": {"width": 1280, "height": 900}}, {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}],
    ids=["desktop", "phone"],
)
def test_a_browser_shows_the_whole_page_and_asks_nobody(swept, which, options):
    folder, graph, *_ = swept
    # A run's page by the link that users find, one folder less deep than the file; the comparison where it is.
    place = graph.first.run_name if which == "run" else graph.comparison.directory
    with opened(folder / "outputs" / place / "report.html", **options) as page:
        assert "owned" not in page.title()
        charts = page.locator("[data-chart]").count()
        assert page.locator("[data-chart] svg.main-svg").count() >= charts > 2
        # Nothing sticks out: a phone scrolls down, not sideways.
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        loss = "[data-chart='rewards/accuracies']" if which == "comparison" else "[data-chart='curve dpo loss']"
        titles = []
        for axis in ("step", "tokens", "seconds"):
            page.check(f"input[value={axis}]")
            page.wait_for_selector("html[data-drawn=yes]")
            titles.append(page.locator(f"{loss} .xtitle").text_content())
        assert titles == ["step", "tokens", "seconds of training"]
        page.fill("#smoothing", "0.9")
        page.check("#log")
        page.wait_for_selector("html[data-drawn=yes]")
        assert (
            page.locator(f"{loss} .scatterlayer .trace").count() >= 2 * page.locator(f"{loss} .legend .traces").count()
        )
        if which == "comparison":
            href = page.locator("table.runs a").first.get_attribute("href")
            assert (folder / "outputs" / place / href).is_file()
            return
        # The last model's column is on the screen, whatever its width.
        box = page.locator("table.models td:last-child").first.bounding_box()
        assert box["x"] + box["width"] <= options["viewport"]["width"]
        assert page.locator("h1").inner_text() == graph.first.run_name
        if which == "run":
            assert HOSTILE in page.locator("#samples ~ .card").first.inner_text()
            assert page.locator(".t.on").count() > 10


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_policy_stops_a_script_that_got_in(swept):
    """What escaping should have stopped, put into a page by hand."""
    folder, graph, *_ = swept
    page = (folder / "outputs" / graph.first.report.directory / "report.html").read_text()
    bad = "<script>document.title='owned'</script><img src='https://example.org/x' onerror=\"document.title='owned'\">"
    path = folder / "outputs" / "reports" / "bad" / "report.html"  # beside the file that it loads
    path.parent.mkdir()
    path.write_text(page.replace("<h1>", f"{bad}<h1>", 1))
    with pytest.raises(AssertionError), opened(path) as shown:
        title = shown.title()
    assert title != "owned"


TASK = """
task: asked
dataset_path: json
dataset_kwargs: {data_files: {test: tasks/rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["yes", "no"]
doc_to_target: 0
"""


def test_lm_eval_measures_the_exported_model(swept, monkeypatch):
    """The stage itself, on SFT's model of the demo; a task of one's own over two rows."""
    folder, graph, *_ = swept
    monkeypatch.chdir(folder)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")  # what the stage sets would stay for other tests
    (folder / "tasks").mkdir()
    (folder / "tasks" / "asked.yaml").write_text(TASK)
    (folder / "tasks" / "rows.jsonl").write_text('{"question": "1 and 2?"}\n{"question": "2 and 2?"}\n')
    config = load_file(folder / "my.yaml") | {"method": "sft", "sweep": {}}
    config["evaluation"]["lm_eval"] = {"tasks": ["asked"], "include_path": "tasks"}
    plan = make_plan(resolve(config))
    assert plan.exported["sft"].directory == graph.first.exported["sft"].directory
    stage = plan.lm_evaluated["sft"]
    make_here(plan, stage)
    summary = json.loads((plan.base / stage.manifest).read_text())
    assert summary["rows"] == {"asked": 2} and summary["results"]["asked"]["acc"]["value"] in (0, 0.5, 1)
