"""Output of ranks: limited in memory, grouped by ranks, shortened for display."""

from workbench.cluster.output import (
    BoundedText,
    CellFailure,
    RankOutput,
    apply_carriage_returns,
    elide,
    group_errors,
    group_output,
)


def make_output(rank, *texts, error=None):
    output = RankOutput(rank, error=error)
    for text in texts:
        output.add_text("stdout", text)
    return output


def test_ranks_with_equal_output_form_one_block():
    outputs = {0: make_output(0, "a\n"), 1: make_output(1, "b\n"), 2: make_output(2, "a", "\n"), 3: make_output(3)}
    blocks = group_output(outputs)
    assert [block.ranks for block in blocks] == [(0, 2), (1,)]
    assert str(blocks[0].pieces[0].text) == "a\n"


def test_order_of_pieces_matters_and_streams_are_joined():
    first, second = make_output(0, "x"), make_output(1, "x")
    first.add_data("display", {"image/png": "AAAA"})
    second.add_data("display", {"image/png": "BBBB"})
    first.add_text("stderr", "warned")
    assert [block.ranks for block in group_output({0: first, 1: second})] == [(0,), (1,)]
    assert (first.stdout, first.stderr, first.displays) == ("x", "warned", [{"image/png": "AAAA"}])
    first.add_data("result", {"text/plain": "42"})
    assert first.result == "42" and second.result is None


def test_ranks_with_figures_are_not_grouped():
    outputs = {rank: make_output(rank, "same") for rank in range(3)}
    for rank in (0, 1):
        outputs[rank].add_data("display", {"image/png": "AAAA"})
    assert [block.ranks for block in group_output(outputs)] == [(0,), (1,), (2,)]


def test_errors_are_grouped_by_class_and_message():
    failure = CellFailure("ValueError", "bad", "traceback of rank 1")
    outputs = {
        0: make_output(0),
        1: make_output(1, error=failure),
        2: make_output(2, error=CellFailure("ValueError", "bad", "traceback of rank 2")),
        3: make_output(3, error=CellFailure("KeyError", "'k'", "other")),
    }
    assert group_errors(outputs) == [((1, 2), failure), ((3,), outputs[3].error)]


def test_long_output_keeps_first_and_last_lines_and_counts_the_rest():
    text = "".join(f"{number}\n" for number in range(1000))
    lines = elide(text, lines=10, last=4).splitlines()
    assert lines == ["0", "1", "2", "3", "4", "5", "... 990 lines left out ...", "996", "997", "998", "999"]
    assert elide("short\n") == "short\n"


def test_memory_of_long_output_is_limited():
    text = BoundedText(limit=1000)
    for number in range(100_000):
        text.append(f"{number}\n")
    kept = str(text)
    assert len(kept) < 2200 and kept.startswith("0\n1\n") and kept.endswith("99999\n") and "lines dropped" in kept


def test_equal_output_of_100_000_lines_on_eight_ranks_forms_one_block():
    flood = "".join(f"step {number} loss 0.123\n" for number in range(100_000))
    blocks = group_output({rank: make_output(rank, flood) for rank in range(8)})
    shown = elide(str(blocks[0].pieces[0].text))
    assert len(blocks) == 1 and len(shown.splitlines()) == 401


def test_a_progress_bar_becomes_one_line():
    assert apply_carriage_returns("a\n 1%\r50%\r100%\nend") == "a\n100%\nend"
    assert apply_carriage_returns("dos\r\nline") == "dos\nline"
