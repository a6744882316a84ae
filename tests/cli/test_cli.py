# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
import json
import sys

import pytest
import torch
from click.testing import CliRunner

import largebatch
from largebatch.cli import main
from largebatch.cli.demo import data, report, train
from largebatch.cli.demo.model import ByteTransformer, loss
from largebatch.cli.info import rows

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
NAMES = list(train.RECIPES)
TINY = ["--steps", "4", "--batch", "8", "--layers", "1", "--width", "32", "--context", "16"]


@pytest.fixture(autouse=True)
def small_and_single_threaded(monkeypatch):
    """Keep the runs short: on so little work a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(train, "VALIDATION_WINDOWS", 32)
    yield
    torch.set_num_threads(threads)


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def no_training(monkeypatch):
    """Fail the test if a wrong input is found only after work has begun."""

    def refuse(*_, **__):
        raise AssertionError("training began")

    monkeypatch.setattr(data, "load", refuse)
    monkeypatch.setattr(train, "run", refuse)


@pytest.fixture(scope="module")
def corpus():
    return data.load()


def settings(**over):
    values = dict(
        device=torch.device("cpu"), batch=8, micro_batch=32, steps=4, seed=0, layers=1, width=32,
        context=16,
    )  # fmt: skip
    return train.Settings(**{**values, **over})


# ---- info ----------------------------------------------------------------------------------------


def test_info_json_is_build_info():
    result = invoke("info", "--json")
    assert result.exit_code == 0
    assert json.loads(result.output) == largebatch.build_info()


def test_info_table_names_version_isa_and_torch():
    result = invoke("info")
    assert result.exit_code == 0
    for text in (largebatch.__version__, largebatch.build_info()["cpu"]["isa"], torch.__version__):
        assert text in result.output


@pytest.mark.parametrize("compiled", [True, False])
def test_info_says_why_cuda_is_off(compiled):
    cuda = {"compiled": compiled, "available": False, "reason": "no driver: install one"}
    if compiled:
        cuda |= {"version": "13.0", "architectures": "90", "driver": None, "devices": 0}
    table = dict(rows({**largebatch.build_info(), "cuda": cuda}))
    assert table["CUDA"] == "off: no driver: install one"
    assert ("CUDA driver" in table) == compiled
    if compiled:
        assert table["CUDA driver"] == "none found"


def test_info_without_openmp_says_one_thread():
    info = largebatch.build_info()
    info["cpu"] = {**info["cpu"], "openmp": False}
    assert dict(rows(info))["CPU threads"].startswith("1 ")


def test_version():
    assert largebatch.__version__ in invoke("--version").output


# ---- demo, end to end ----------------------------------------------------------------------------


def test_every_optimizer_learns_in_the_demo(monkeypatch, tmp_path):
    out = tmp_path / "curves.png"
    runs = []
    original = train.run
    monkeypatch.setattr(train, "run", lambda *given: runs.append(original(*given)) or runs[-1])
    chosen = [option for name in NAMES for option in ("--optimizer", name)]
    larger = ["--steps", "30", "--batch", "32", "--lr", "lamb=0.03", "--device", "cpu"]
    result = invoke("demo", *TINY, *larger, *chosen, "--out", out)
    assert result.exit_code == 0, result.output
    assert [run.name for run in runs] == NAMES
    for run in runs:
        assert run.train[0] == runs[0].train[0]  # the same model, the same first batch
        assert run.train[0] == pytest.approx(8, abs=0.5)  # bits per byte of an untrained model
        assert run.validation[-1][1] < run.train[0] - 1
        assert run.validation[-1][0] == len(run.step_seconds) == 30
    table = {line.split()[0]: line.split() for line in result.output.splitlines() if line.strip()}
    for name, recipe in train.RECIPES.items():
        row = table[recipe.title]
        assert len(row) == 8  # name, lr, two losses, time, rate, state, peak
        assert row[1] == ("0.03" if name == "lamb" else f"{recipe.lr:g}")
    assert result.output.endswith(f"Curves: {out}\n")
    assert out.read_bytes().startswith(PNG_SIGNATURE)


def test_demo_defaults_to_lamb_beside_adamw(monkeypatch, tmp_path):
    trained = []
    original = train.run
    monkeypatch.setattr(
        train, "run", lambda name, *rest: trained.append(name) or original(name, *rest)
    )
    result = invoke("demo", *TINY, "--out", tmp_path / "x.png")
    assert result.exit_code == 0, result.output
    assert trained == ["lamb", "adamw"]


def test_demo_reports_divergence_and_still_writes_the_figure(tmp_path):
    out = tmp_path / "x.png"
    result = invoke("demo", *TINY, "--lr", "adamw=1e30", "--device", "cpu", "--out", out)
    assert result.exit_code == 0, result.output
    assert "diverged" in result.output
    assert out.read_bytes().startswith(PNG_SIGNATURE)


@pytest.mark.parametrize("command", [[], ["info"], ["demo"]])
def test_help(command):
    result = invoke(*command, "--help")
    assert result.exit_code == 0
    assert result.output.startswith("Usage:")


# ---- demo, wrong input: one line, before training ------------------------------------------------


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "'--batch': 0 is not in the range x>=1."),
        (["--steps", "0"], "'--steps': 0 is not in the range x>=1."),
        (["--micro-batch", "-1"], "'--micro-batch': -1 is not in the range x>=1."),
        (["--width", "33"], "'--width': 33 is not a multiple of 32."),
        (["--seed", "-1"], "'--seed': -1 is not in the range 0<=x<=4294967295."),
        (["--optimizer", "sgd"], f"'--optimizer': 'sgd' is not one of {str([*NAMES])[1:-1]}."),
        (["--device", "tpu"], "'--device': 'tpu' is not one of auto, cpu, cuda, cuda:N."),
        (["--device", "meta"], "'--device': 'meta' is not one of auto, cpu, cuda, cuda:N."),
        (["--lr", "0.1"], f"'0.1' is not NAME=RATE with a name of {', '.join(NAMES)} and a posi"),
        (["--lr", "lamb=-1"], "'lamb=-1' is not NAME=RATE"),
        (["--lr", "lamb=nan"], "'lamb=nan' is not NAME=RATE"),
        (["--lr", "lars=1"], "--lr lars=1: lars is not trained in this run."),
        (["--out", "/no/such/folder/x.png"], "/no/such/folder/x.png cannot be written: No such"),
        (["--out", "curves.pdf"], "'--out': curves.pdf does not end in .png."),
    ],
)
def test_demo_refuses(arguments, message):
    result = invoke("demo", *arguments)
    assert result.exit_code == 2
    assert result.output.splitlines()[-1].startswith("Error: ")
    assert message in result.output.splitlines()[-1]


@pytest.mark.usefixtures("no_training")
def test_demo_refuses_a_folder_as_out(tmp_path):
    folder = tmp_path / "folder.png"
    folder.mkdir()
    result = invoke("demo", "--out", folder)
    assert result.exit_code == 2
    assert "is a directory" in result.output.splitlines()[-1]


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("in_torch", "in_largebatch", "device", "message"),
    [
        (False, True, "cuda", "PyTorch finds no CUDA device here; use cpu."),
        (True, False, "cuda", "CUDA is off in largebatch: the reason; use cpu."),
        (True, True, "cuda:7", "cuda:7: PyTorch finds 1 CUDA device(s)."),
    ],
)
def test_demo_refuses_cuda_that_is_not_there(monkeypatch, in_torch, in_largebatch, device, message):
    info = {"cuda": {"available": in_largebatch, "reason": "the reason"}}
    monkeypatch.setattr("largebatch.cli._options.build_info", lambda: info)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: in_torch)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(in_torch))
    result = invoke("demo", "--device", device)
    assert result.exit_code == 2
    assert message in result.output.splitlines()[-1]


@pytest.mark.usefixtures("no_training")
def test_demo_without_matplotlib_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = invoke("demo")
    assert result.exit_code == 1
    assert result.output == "Error: the figure needs matplotlib: pip install largebatch[demo]\n"


def test_demo_without_sources_says_where_it_looked(monkeypatch, tmp_path):
    monkeypatch.setattr(data.sysconfig, "get_path", lambda _: str(tmp_path))
    result = invoke("demo")
    assert result.exit_code == 1
    assert result.output == f"Error: no Python sources to train on under {tmp_path}\n"


# ---- the parts -----------------------------------------------------------------------------------


def test_corpus_split_is_by_file_and_skips_packages_and_tests(tmp_path):
    for name in ("a.py", "b.py", "c.py", "d.py", "e.py", "f.py", "site-packages/g.py", "test/h.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"this is {name}")
    (tmp_path / "notes.txt").write_text("not Python")
    in_validation = [name for name in "abcdef" if data.zlib.crc32(f"{name}.py".encode()) % 10 == 0]
    for name in map(str, range(100)):  # until both parts have a file
        if in_validation:
            break
        if data.zlib.crc32(f"{name}.py".encode()) % 10 == 0:
            (tmp_path / f"{name}.py").write_text(f"this is {name}.py")
            in_validation.append(name)
    corpus = data.load(tmp_path)
    train_text, validation_text = (
        bytes(part.tolist()).decode() for part in (corpus.train, corpus.validation)
    )
    assert validation_text == "\0".join(f"this is {name}.py" for name in in_validation)
    assert train_text == "\0".join(
        f"this is {name}.py" for name in "abcdef" if name not in in_validation
    )


def test_samples_are_windows_of_the_text_and_depend_on_the_seed_only():
    text = torch.arange(200, dtype=torch.uint8)
    first, again = (data.sample(text, 50, 7, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (50, 8)
    assert torch.equal(first - first[:, :1], torch.arange(8).expand(50, 8))


def test_model_does_not_look_ahead():
    torch.manual_seed(0)
    model = ByteTransformer(layers=2, width=32, context=12)
    text = torch.randint(256, (3, 12))
    changed = text.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 256
    before, after = model(text), model(changed)
    torch.testing.assert_close(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 8], after[:, 8])


def test_micro_batches_give_the_gradients_of_the_whole_batch(corpus):
    torch.manual_seed(0)
    model = ByteTransformer(1, 32, 16)
    batch = data.sample(corpus.train, 8, 16, torch.Generator().manual_seed(0))
    whole = train.accumulate_gradients(model, batch, settings())
    expected = [p.grad.clone() for p in model.parameters()]
    pieces = train.accumulate_gradients(model, batch, settings(micro_batch=3))  # 3, 3 and 2
    assert pieces == pytest.approx(whole, rel=1e-6)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-7)
    assert train.evaluate(model, batch, settings(micro_batch=5)) == pytest.approx(whole, rel=1e-6)
    assert loss(model, batch).item() == pytest.approx(whole, rel=1e-6)


def test_schedule_rises_for_a_tenth_and_falls_to_zero():
    factors = [train.schedule(step, 40) for step in range(41)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[40] == 0.0
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert train.schedule(0, 1) == 1.0


def test_run_that_diverges_ends_before_it_steps_again(corpus):
    run = train.run("adamw", 1e30, settings(steps=9), corpus, lambda *_: 0)
    assert run.diverged
    assert (len(run.train), len(run.step_seconds)) == (2, 1)


def test_state_bytes_are_two_moments_and_a_step(corpus):
    run = train.run("lamb", 0.01, settings(steps=1), corpus, lambda *_: 0)
    tensors = len(list(ByteTransformer(1, 32, 16).parameters()))
    assert run.state_bytes == 8 * run.parameters + 4 * tensors


def test_table_shows_a_run_that_diverged_at_once():
    run = train.Run("adamw", 1.0, parameters=10, train=[float("nan")])
    table = report.table([run], settings())
    assert [next(iter(column.cells)) for column in table.columns] == [
        "AdamW", "1", "diverged\nat step 1", "-", "-", "-", "-", "-",
    ]  # fmt: skip
