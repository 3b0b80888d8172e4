"""Event files: TensorBoard's own reader reads ours, and we read what TensorBoard's protocol buffers write."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.util import tensor_util

import workbench
from tests.rich_run import BEGAN, HOSTILE, NORMS, SAMPLE, STEP_S, STEPS
from workbench.errors import ConfigError, RunDirectoryError
from workbench.export import export
from workbench.history import tensorboard_file as events_file
from workbench.run.api import Run


def accumulated(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
    return found.Reload()


@given(st.binary(max_size=300))
def test_checksum_by_its_definition(data: bytes) -> None:
    """Division by the Castagnoli polynomial, bit by bit from its definition in RFC 3720."""
    register = 0xFFFFFFFF
    for bit in (byte >> place & 1 for byte in data for place in range(8)):
        register = (register >> 1) ^ (0x82F63B78 if (register ^ bit) & 1 else 0)
    assert events_file.crc32c(data) == register ^ 0xFFFFFFFF


def test_checksum_of_the_standard() -> None:
    # RFC 3720, appendix B.4: 32 bytes of zeros, and of ones
    assert events_file.crc32c(bytes(32)) == 0x8A9136AA and events_file.crc32c(b"\xff" * 32) == 0x62A8AB43


def test_tensorboard_reads_scalars_histograms_and_texts(run: Path, tmp_path: Path) -> None:
    found = accumulated(export(run, "tensorboard", tmp_path))
    tags = found.Tags()
    assert {"loss", "lr", "tps", "validation/loss", "rank 0/cpu_percent", f"gradient norm/{HOSTILE}"} <= set(
        tags["scalars"]
    )
    metrics = Run(run).metrics()
    for name in ("loss", "grad_norm", "tps", "step_time_ms"):
        events = found.Scalars(name)
        assert [e.step for e in events] == metrics["step"].tolist()
        np.testing.assert_array_equal([e.value for e in events], metrics[name].to_numpy(dtype="f4"))
        assert [e.wall_time for e in events] == metrics["time"].tolist()
    assert [(e.step, e.value) for e in found.Scalars("validation/loss")] == [(2, 0.5)]
    # two shards of half the squares, and one layer that both ranks hold
    assert [found.Scalars(f"{what} norm/split")[0].value for what in ("gradient", "weight", "update")] == NORMS
    assert found.Scalars(f"gradient norm/{HOSTILE}")[0].value == pytest.approx(8**0.5)

    split = found.Histograms("gradient magnitude/split")[0].histogram_value
    assert split.bucket_limit == [0.125, 0.25, 0.5, 1.0, 2.0] and split.bucket == [2, 1, 1 + 3, 3 + 5, 5]
    assert split.num == 20 and split.min == 0.0 and split.max == 2.0
    middles = 2 ** (np.array([-3, -2, -1, 0]) + 0.5)
    assert split.sum == pytest.approx((middles * [1, 4, 8, 5]).sum())
    whole = found.Histograms(f"gradient magnitude/{HOSTILE}")[0].histogram_value
    assert whole.bucket == [1, 1, 3, 5]

    texts = {tag: tensor_util.make_ndarray(found.Tensors(tag)[0].tensor_proto) for tag in ("sample", "spec", "cell.py")}
    assert texts["sample"].item().decode() == SAMPLE and b'name = "rich"' in texts["spec"].item()
    assert found.SummaryMetadata("sample").plugin_data.plugin_name == "text"


def test_every_byte_is_checked_by_tensorboard(run: Path, tmp_path: Path) -> None:
    """Its loader drops a record whose checksum is wrong: all of ours are there, and a flipped bit is seen."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

    (file,) = export(run, "tensorboard", tmp_path).iterdir()
    records = list(RawEventFileLoader(str(file)).Load())
    assert records == list(events_file.records(file.read_bytes()))
    assert event_pb2.Event.FromString(records[0]).file_version == "brain.Event:2"


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    check = struct.pack("<I", events_file.masked(events_file.crc32c(length)))
    return length + check + data + struct.pack("<I", events_file.masked(events_file.crc32c(data)))


def written_elsewhere(folder: Path, losses: list[float], tag: str = "loss", *, tensors: bool = False) -> Path:
    """Event files as TensorBoard's protocol buffers make them."""
    folder.mkdir(parents=True, exist_ok=True)
    data = record(event_pb2.Event(wall_time=1.0, file_version="brain.Event:2").SerializeToString())
    for step, loss in enumerate(losses, start=1):
        if tensors:
            value = summary_pb2.Summary.Value(tag=tag, tensor=tensor_util.make_tensor_proto(np.float32(loss)))
        else:
            value = summary_pb2.Summary.Value(tag=tag, simple_value=loss)
        text = summary_pb2.Summary.Value(tag="note", tensor=tensor_util.make_tensor_proto([b"no number"]))
        event = event_pb2.Event(wall_time=100.0 + step, step=step, summary=summary_pb2.Summary(value=[value, text]))
        data += record(event.SerializeToString())
    path = folder / "events.out.tfevents.1.elsewhere"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("tensors", [False, True])
def test_files_made_elsewhere_are_read(tmp_path: Path, tensors: bool) -> None:
    path = written_elsewhere(tmp_path, [2.0, 1.0, 0.5], "train/loss", tensors=tensors)
    found = events_file.read_scalars(tmp_path)
    assert list(found) == ["train/loss"]
    series = found["train/loss"]
    assert series.steps.tolist() == [1, 2, 3] and series.values.tolist() == [2.0, 1.0, 0.5]
    assert series.times.tolist() == [101.0, 102.0, 103.0]
    theirs = accumulated(tmp_path)
    assert [e.value for e in theirs.Scalars("train/loss")] == [2.0, 1.0, 0.5] if not tensors else True
    path.write_bytes(path.read_bytes()[:-7])  # a writer that was killed
    assert events_file.read_scalars(path)["train/loss"].steps.tolist() == [1, 2]


@given(st.binary(max_size=200))
def test_bytes_that_are_no_event_file(data: bytes) -> None:
    assert list(events_file.records(data)) == []


def test_our_own_file_round_trips(run: Path, tmp_path: Path) -> None:
    found = events_file.read_scalars(export(run, "tensorboard", tmp_path))
    np.testing.assert_array_equal(found["loss"].values, Run(run).metrics()["loss"].to_numpy(dtype="f4"))


@given(st.integers(-(2**63), 2**63 - 1), st.text(max_size=50), st.floats(width=32))
def test_an_event_survives_both_ways(step: int, tag: str, value: float) -> None:
    tag = tag.encode("utf-8", "replace").decode()
    body = events_file._double(1, 5.0) + events_file._int(2, step)
    body += events_file._bytes(5, events_file._bytes(1, events_file.scalar(tag, value)))
    theirs = event_pb2.Event.FromString(body)
    assert theirs.step == step and theirs.summary.value[0].tag == tag
    np.testing.assert_equal(theirs.summary.value[0].simple_value, value)
    when, ours, values = events_file._event(theirs.SerializeToString())
    assert (when, ours, values[0][0]) == (5.0, step, tag)
    np.testing.assert_equal(values[0][1], value)


def test_a_run_made_elsewhere_is_compared(run: Path, tmp_path: Path) -> None:
    written_elsewhere(tmp_path / "logs" / "theirs", [2.0, 1.0, 0.5, 0.25, 0.1], "Train/Loss")
    found = workbench.compare([run, tmp_path / "logs" / "theirs"])
    ours, theirs = found.compared
    assert theirs.origin == "tensorboard" and theirs.label == "theirs" and theirs.state == "imported"
    assert found.common == STEPS and found.figures[1].loss == 0.25
    assert found.differences == () and "theirs" in repr(found) and "imported" in found._repr_html_()
    by_time = workbench.compare([run, tmp_path / "logs"], "time")
    assert by_time.compared[1].curve["time"].tolist() == [0, 1, 2, 3, 4]
    assert ours.curve["time"][0] == pytest.approx(STEP_S) and BEGAN
    with pytest.raises(ConfigError, match="has no record of tokens"):
        workbench.compare([run, tmp_path / "logs"], "tokens")


def test_which_scalar_is_the_loss(run: Path, tmp_path: Path) -> None:
    written_elsewhere(tmp_path / "a", [2.0, 1.0], "objective")
    with pytest.raises(ConfigError, match="it has objective"):
        workbench.compare([run, tmp_path / "a"])
    assert workbench.compare([run, tmp_path / "a"], tag="objective").compared[1].curve["loss"].tolist() == [2.0, 1.0]
    with pytest.raises(ConfigError, match="did you mean 'objective'"):
        workbench.compare([run, tmp_path / "a"], tag="objektive")
    written_elsewhere(tmp_path / "b" / "x", [1.0])
    written_elsewhere(tmp_path / "b" / "y", [1.0])
    with pytest.raises(RunDirectoryError, match="of 2 runs"):
        workbench.compare([run, tmp_path / "b"])
    (tmp_path / "c").mkdir()
    with pytest.raises(RunDirectoryError, match="no TensorBoard event file"):
        workbench.compare([run, tmp_path / "c"])
