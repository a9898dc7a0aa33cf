"""README.md and docs/: links, keys, messages and the notes on their blocks. What they command is run in test_documented_commands."""

import ast
import importlib.util
import json
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml
from doc_pages import REPOSITORY, blocks, pages, prose, text_of

from post_training import __version__, methods
from post_training.config import document, resolve_runs
from post_training.core.errors import ConfigError
from post_training.data import registry
from post_training.preflight.check import NAMES

KINDS = {"", "file", "planned", "prepared", "not run"}
# A block that no test touches needs a reason that stands here, and at most so many blocks have it.
NOT_RUN = {
    "installs the environment that the tests already run in": 3,
    "installs the environment for GPUs": 1,
    "5 GB of wheels; tests/install does it": 1,
    "needs a machine with a PyTorch of its own; tests/install makes one": 1,
    "the suite runs these tests": 2,
    "of finished runs": 1,
    "needs vLLM and a GPU": 1,
    "needs llama.cpp and Ollama": 2,
    "minutes; the tests of faults run the same harness": 1,
}


@pytest.mark.parametrize("page", pages())
def test_a_note_on_a_block_is_one_that_tests_know(page):
    for block in blocks(page):
        assert block.kind in KINDS, f"{block}: {block.note!r}"
        assert block.language in ("bash", "python", "yaml", "json", "jinja", "mermaid"), f"{block}: ```{block.language}"
        if block.kind in ("file", "planned", "not run"):
            assert block.detail, f"{block}: {block.kind} without a word on what or why"


def test_what_is_not_run_is_little_and_has_a_known_reason():
    reasons = [block.detail for page in pages() for block in blocks(page) if block.kind == "not run"]
    assert {reason: reasons.count(reason) for reason in reasons} == NOT_RUN


def anchors(page: str) -> set[str]:
    """What GitHub makes of a page's headings."""
    found = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        path = ((REPOSITORY / page).parent / name).resolve() if name else REPOSITORY / page
        assert path.exists(), f"{page}: {target}"
        assert path.is_relative_to(REPOSITORY), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(str(path.relative_to(REPOSITORY))), f"{page}: {target}"


def test_every_page_is_reached_from_the_readme():
    reached, waiting = set(), ["README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        for target in re.findall(r"\]\(([^)#\s]+\.md)(?:#\S*)?\)", prose(page)):
            if not target.startswith("http"):
                path = str(((REPOSITORY / page).parent / target).resolve().relative_to(REPOSITORY))
                waiting += [path] if path not in reached and (REPOSITORY / path).is_file() else []
    assert {*pages()} <= reached


@cache
def known_keys() -> set[str]:
    """Every key of config/README.md, and the sections."""
    keys = {key.path for _, _, found in document._sections() for key in found}
    return keys | {key.rpartition(".")[0].removesuffix("[]") for key in keys if "." in key}


def key_of(span: str) -> str:
    return re.split(r"[=: ]", span, maxsplit=1)[0]


@pytest.mark.parametrize("page", [page for page in pages() if "coming-from" in page])
def test_keys_of_ours_in_the_tables_of_others_exist(page):
    rows = [line.split("|") for line in text_of(page).splitlines() if line.startswith("| ")]
    assert len(rows) > 30
    for row in rows[1:]:
        ours = row[2].strip()
        assert ours, f"{page}: {row}"
        spans = re.findall(r"`([^`]+)`", ours)
        assert spans or ours == "–", f"{page}: {ours}"
        for span in spans:
            assert key_of(span) in known_keys(), f"{page}: {span}"


def test_names_of_trl_in_its_table_exist():
    """Fields of the dataclasses behind its command line, read without importing them."""
    folders = {name: Path(importlib.util.find_spec(name).origin).parent for name in ("trl", "transformers")}
    files = [folders["trl"] / "scripts" / "utils.py", folders["transformers"] / "training_args.py"]
    files += (folders["trl"] / "trainer").glob("*_config.py")
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    names = {node.target.id for tree in trees for node in ast.walk(tree)
             if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}  # fmt: skip
    rows = [line.split("|") for line in text_of("docs/coming-from/trl.md").splitlines() if line.startswith("| `")]
    theirs = {span for row in rows for span in re.findall(r"`([^`]+)`", row[1])}
    assert {span for span in theirs if not span.startswith("trl ")} <= names


def mentioned_keys(page: str) -> set[str]:
    """Code spans of the prose that look like keys of ours: a section, a point, a name."""
    sections = {key.partition(".")[0] for key in known_keys()}
    spans = {key_of(span) for span in re.findall(r"`([^`\n]+)`", prose(page))}
    dotted = {span for span in spans if re.fullmatch(r"[a-z_]+(\[\])?(\.[a-z_]+(\[\])?)+", span)}
    files = (".py", ".md", ".json", ".jsonl", ".yaml", ".sh", ".npy", ".jinja", ".cff")
    named = {span for span in dotted if span.partition(".")[0] in sections and not span.endswith(files)}
    return named - set(NAMES)  # preflight's checks, which are named alike


def test_keys_in_the_prose_exist():
    renamed = {"data.hygiene"}  # the changelog names the old key
    for page in pages():
        for key in mentioned_keys(page) - (renamed if page == "CHANGELOG.md" else set()):
            rest = key.partition(".")[2]
            # A method's section may hold any shared one: dpo.training.learning_rate.
            assert key in known_keys() or rest in known_keys(), f"{page}: {key}"


def test_yaml_blocks_are_configurations(monkeypatch):
    """Keys and types; what a file of its own needs besides is planned in test_documented_commands."""
    monkeypatch.chdir(REPOSITORY)
    for page in pages():
        for block in blocks(page):
            if block.language == "yaml" and not block.detail.startswith("my/tasks/"):  # in lm_eval's form, and run
                parts = yaml.safe_load(block.text)
                # A part of a configuration becomes a whole one.
                whole = {"model": {"name_or_path": "a/b"}, "training": {"max_steps": 1}, "data": {}} | parts
                whole["data"] = {"datasets": [{"path": "a/b"}], **whole["data"]}
                if parts.get("method") not in ("dft",):  # a method that its page adds
                    try:
                        resolve_runs(whole)
                    except ConfigError as error:
                        pytest.fail(f"{block}: {error}")


@cache
def source_strings() -> list[list[str]]:
    """The strings of each source file, with U+0000 for the expressions of an f-string."""
    found = []
    for path in sorted((REPOSITORY / "src").rglob("*.py")):
        strings = []
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                strings.append(" ".join("".join(map(str, parts)).split()))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                strings.append(" ".join(node.value.split()))
        found.append(strings)
    return found


def stands_in_source(message: str) -> bool:
    """Whether one source file has every fixed part of the message; `…` is anything, and `; ` may join two strings."""
    parts = [part.strip(" :") for part in re.split("…|; ", message) if len(part.strip(" :")) > 2]
    return any(all(any(part in text for text in strings) for part in parts) for strings in source_strings())


def test_messages_of_the_troubleshooting_page_stand_in_the_source():
    messages = re.findall(r"^\*\*`(.+?)`\*\*", prose("docs/troubleshooting.md"), re.MULTILINE)
    messages += re.findall(r"and \*\*`(.+?)`\*\*", prose("docs/troubleshooting.md"))
    assert len(messages) > 35
    assert not [message for message in messages if not stands_in_source(message)]
    reasons = re.findall(r"^\| (`.+?`) \|", prose("docs/troubleshooting.md"), re.MULTILINE)
    codes = {code for cell in reasons for code in re.findall(r"`(\w+)`", cell)}
    assert len(codes) > 10
    strings = [text for of_file in source_strings() for text in of_file]
    assert not [code for code in codes if not any(text == code or text.startswith(f"{code}:") for text in strings)]


def test_every_format_of_the_gallery_is_read_by_its_entry():
    """A row and the YAML below it: the transform and the rules take the row."""
    from post_training.data import registry as transforms
    from post_training.data.rows import Rules, checker
    from post_training.data.transforms import load_transform

    shown = [block for block in blocks("docs/data-formats.md") if block.language in ("json", "yaml")]
    assert [block.language for block in shown] == ["json", "yaml"] * (len(shown) // 2) and len(shown) > 20
    for row, entry in zip(shown[::2], shown[1::2], strict=True):
        section = yaml.safe_load(entry.text)
        method = next((name for name in ("dpo", "kto", "reward") if name in section), "sft")
        data = section["data"] if method == "sft" else section[method]["data"]
        wanted = data["datasets"][0].get("transform", "messages")
        arguments = dict(wanted) if isinstance(wanted, dict) else {"name": wanted}
        name = arguments.pop("name")
        source = transforms.find_transform(name, [], "transform")
        made = load_transform(name, source.file, arguments)(json.loads(row.text))
        for example in made if isinstance(made, list) else [made]:
            checker(methods.load(method).ROWS)(example, Rules())


def test_the_memory_table_is_what_preflight_predicts():
    spec = importlib.util.spec_from_file_location("memory_table", REPOSITORY / "docs/scripts/memory_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.table(["Llama 3.2 1B"])  # building the shape of a large one takes seconds
    assert set(found.splitlines()) <= set(text_of("docs/memory.md").splitlines()), (
        "python docs/scripts/memory_table.py writes it"
    )


def test_recipes_in_the_table_of_hyper_parameters_are_as_they_are():
    text = text_of("docs/hyper-parameters.md")
    for path in sorted((REPOSITORY / "config" / "recipes").glob("*.yaml")):
        pipeline = resolve_runs(yaml.safe_load(path.read_text()))[0]
        first, last = (pipeline.views[name] for name in (pipeline.stages[0], pipeline.stages[-1]))
        line = next(line for line in text.splitlines() if line.startswith(f"| [{path.stem}]"))
        for training in (first["training"], last["training"]):
            assert f"{training['learning_rate']:g}, {training['effective_batch_size']}, " in line, line
        assert f"`{last['dpo']['loss_type']}`, {last['dpo']['beta']:g}, " in line


def test_the_site_builds_and_a_broken_link_stops_it(tmp_path):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    from mkdocs.exceptions import Abort

    config = load_config(str(REPOSITORY / "mkdocs.yml"), site_dir=str(tmp_path / "site"), plugins=[])
    build(config)
    assert "docs" not in {path.name for path in (tmp_path / "site").iterdir()}
    pages_of_site = {
        str(path.parent.relative_to(tmp_path / "site")) for path in (tmp_path / "site").rglob("index.html")
    }
    assert {"config", "tutorial", "howto/method", "changelog"} <= pages_of_site
    listed = re.findall(r"^ +- ([\w/-]+\.md)$", (REPOSITORY / "mkdocs.yml").read_text(), re.MULTILINE)
    written = {str(path.relative_to(REPOSITORY / "docs")) for path in (REPOSITORY / "docs").rglob("*.md")}
    assert written == {*listed} - {
        "index.md",
        "config.md",
        "changelog.md",
        "contributing.md",
    }  # every page is in the navigation
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("[gone](nowhere.md)")
    (tmp_path / "mkdocs.yml").write_text("site_name: x\nstrict: true\n")
    with pytest.raises(Abort):
        build(load_config(str(tmp_path / "mkdocs.yml"), site_dir=str(tmp_path / "other")))


def test_pictures_are_shown_and_are_made_by_the_script():
    shown = {Path(target).name for page in pages() for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text_of(page))}
    there = {path.name for path in (REPOSITORY / "docs" / "pictures").iterdir()}
    script = text_of("docs/scripts/pictures.py")
    assert shown == there and all(Path(name).stem in script for name in there)


def test_trackers_are_those_of_transformers():
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    from post_training.plan.checks import TRACKERS

    assert {*TRACKERS} == {*INTEGRATION_TO_CALLBACK}
    assert all(f"`{name}`" in text_of("docs/trackers.md") for name in TRACKERS)


def test_ci_files_call_the_readmes_commands():
    readme, makefile = text_of("README.md"), (REPOSITORY / "Makefile").read_text()
    for path in (".github/workflows/test.yml", ".gitlab-ci.yml"):
        text = (REPOSITORY / path).read_text()
        yaml.safe_load(text)
        commands = set(re.findall(r"make (\w+)", text))
        assert commands == {"test", "demo", "site"} and all(f"\n{name}:" in makefile for name in commands)
        assert "make test" in readme and "make demo" in readme and ".test/config/config.yaml" in text


def test_shipped_templates_and_methods_are_named():
    assert all(f"`{name}`" in text_of("docs/data.md") for name in registry.chat_template_names())
    from post_training import methods

    assert all(f"| `{name}` |" in text_of("docs/training.md") for name in methods.names())


def test_the_readme_is_short():
    assert len(text_of("README.md").splitlines()) < 160


def test_changelog_and_citation_say_the_version():
    assert re.search(r"^## (\S+)", text_of("CHANGELOG.md"), re.MULTILINE)[1] == __version__
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["license"] == "Apache-2.0"


def test_licence_is_apache_2():
    text = (REPOSITORY / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text


def test_the_workflow_catalogue_can_list_us():
    """What its README asks of a repository with standardised usage."""
    usage = yaml.safe_load((REPOSITORY / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert usage.keys() == {"mandatory-flags", "software-stack-deployment"}
    assert usage["mandatory-flags"].keys() == {"desc", "flags"}
    deployment = usage["software-stack-deployment"]
    assert deployment.keys() == {"conda", "apptainer", "apptainer+conda", "report"}
    assert all(isinstance(value, bool) for value in deployment.values())
    readme = text_of("README.md").lower()
    assert "snakemake" in readme and "workflow" in readme
    assert (REPOSITORY / "workflow" / "Snakefile").is_file() and (REPOSITORY / "config" / "README.md").is_file()
    assert list((REPOSITORY / "workflow" / "rules").glob("*.smk"))
    json.dumps(usage)


def test_nothing_in_the_documentation_needs_what_only_we_have():
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True).stdout.split()
    for page in pages():
        assert "/work/" not in text_of(page) and "shared/" not in text_of(page), page
        assert page in tracked, f"{page}: not in git"
