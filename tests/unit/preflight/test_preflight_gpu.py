"""Checks of a GPU and its node, on records of nodes and of what `nvidia-smi` prints."""

import dataclasses
import json
from types import SimpleNamespace

import pytest

from post_training.config.batch import Topology
from post_training.core.devices import CAPABILITIES, KNOWN, Device
from post_training.core.errors import UserError
from post_training.core.format import GIB
from post_training.preflight import gpu, probe
from post_training.preflight.node import Node, this_node

NODE = Node(
    torch="2.13.0",
    cuda="13.0",
    hip=None,
    archs=("sm_75", "sm_80", "sm_90", "sm_100", "compute_120"),
    usable=True,
    driver="580.95.05",
    driver_cuda="13.0",
    capability=(9, 0),
    compilers=("cc", "c++", "ninja"),
    python_h=True,
)
AMD = dataclasses.replace(NODE, cuda=None, hip="6.2", archs=(), driver=None, driver_cuda=None, capability=None)
SMI = """#!/bin/sh
case "$*" in
*compute_cap*) echo 9.0 ;;
*) echo '| NVIDIA-SMI 550.54.15    Driver Version: 550.54.15      CUDA Version: 12.4     |' ;;
esac
"""


def found(subject, node):
    subject.node = node
    return {one.name: one for one in gpu.checks(subject)}


def test_a_sound_node_and_a_login_node_are_silent(subject_of):
    for node in (NODE, AMD, None):
        one = found(subject_of(gpu=Device("mi250x") if node is AMD else Device("h100-80")), node)
        assert {check.verdict for check in one.values()} == {"ok"}, one
    assert all("not checked here" in one[f"gpu.{name}"].value for name in ("driver", "compiler"))
    assert one["gpu.capability"].value == "compute capability 9.0"  # by the name of the device
    cpu = found(subject_of(device="CPU", ranks=1), None)
    assert {check.value for check in cpu.values()} == {"no GPU is used"}
    unknown = found(subject_of(gpu=Device("unknown GPU", 80 * GIB)), None)
    assert "not checked here" in unknown["gpu.capability"].value


@pytest.mark.parametrize(
    ("name", "node", "changes", "said"),
    [
        ("driver", {"driver": "550.54.15", "driver_cuda": "12.4", "usable": False}, {}, "driver 550.54.15 for CUDA 12.4 at most"),
        ("driver", {"usable": False}, {}, "which finds no GPU"),
        ("driver", {"usable": False, "cuda": None}, {}, "for the CPU alone"),
        ("capability", {"capability": (7, 0)}, {}, "compute capability 7.0"),
        ("capability", {"capability": (7, 0)}, {"model__dtype": "float16"}, "compute capability 7.0"),  # no kernels in PyTorch
        ("capability", {"capability": (8, 0)}, {"model__attn_implementation": "flash_attention_4"}, "compute capability 8.0"),
        ("compiler", {"compilers": ()}, {}, "a C compiler (gcc) not found"),
        ("compiler", {"python_h": False}, {}, "Python.h"),
        ("compiler", {"compilers": ("cc",)}, {"deepspeed__config_path": "zero3_offload"}, "c++, for DeepSpeed"),
    ],
)  # fmt: skip
def test_a_node_that_cannot_train(subject_of, name, node, changes, said):
    subject = subject_of(**changes)
    one = found(subject, dataclasses.replace(NODE, **node))
    assert one[f"gpu.{name}"].verdict == "failure" and said in one[f"gpu.{name}"].value, one
    assert one[f"gpu.{name}"].remedy
    assert {check.verdict for key, check in one.items() if key != f"gpu.{name}"} == {"ok"}


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        (["8.0", "9.0a"], (9, 0), True), (["9.0a"], (8, 9), False), (["9.0a"], (10, 0), False), (["8.0"], (8, 9), True),
        (["8.9"], (8, 0), False), (["8.0+PTX"], (12, 0), True), (["10.0f"], (10, 3), True), (["something"], (8, 0), True),
    ],
)  # fmt: skip
def test_a_kernel_that_is_built_for_another_gpu(subject_of, tmp_path, archs, capability, runs):
    subject = subject_of(model__attn_implementation="org/attention")
    build = tmp_path / "kernels" / "org--attention" / "build" / "torch213-cxx11-cu130-x86_64-linux"
    build.mkdir(parents=True)
    (build / "metadata.json").write_text(json.dumps({"backend": {"type": "cuda", "archs": archs}}))
    subject.kernel = tmp_path / "manifest.json"
    facts = {"repository": "org/attention", "kernels": {"org/attention": "kernels/org--attention"}}
    subject.kernel.write_text(json.dumps({**facts, "builds": [build.name]}))
    one = found(subject, dataclasses.replace(NODE, archs=(), capability=capability))["gpu.capability"]
    assert (one.verdict == "ok") is runs
    assert runs or f"built for {archs[0]}" in one.remedy


def test_every_nvidia_gpu_of_the_table_has_its_capability():
    families = {name.partition("-")[0] for name in KNOWN}
    assert {family for family in families if not family.startswith("mi")} == set(CAPABILITIES)


def test_the_probe_refuses_its_node_before_its_steps(subject_of, monkeypatch, capsys):
    """This machine, which has no GPU for its PyTorch."""
    subject = subject_of()
    monkeypatch.setattr(probe, "probed_subject", lambda *_: subject)
    task = SimpleNamespace(inputs={})
    with pytest.raises(
        UserError, match=r"^preflight failure: gpu.driver: PyTorch 2\.\S+ for the CPU alone; `make install"
    ):
        probe._check_node(task, subject.view, Topology(1, 1, "GPU"))
    assert "gpu.compiler" in capsys.readouterr().out
    subject.view["preflight"]["only_warn"] = ["gpu.driver"]
    probe._check_node(task, subject.view, Topology(1, 1, "GPU"))


def test_what_nvidia_smi_and_the_machine_say(tmp_path, monkeypatch):
    for name, text in {"nvidia-smi": SMI, "gcc": "#!/bin/sh\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    node = this_node()
    assert (node.driver, node.driver_cuda) == ("550.54.15", "12.4") and node.capability in ((9, 0), None)
    assert "cc" in node.compilers and "ninja" not in node.compilers
    (tmp_path / "nvidia-smi").unlink()
    assert this_node().driver is None
