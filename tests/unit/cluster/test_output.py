"""Output of ranks: bounded, folded, elided."""

from workbench.cluster.output import BoundedText, CellFailure, RankOutput, elide, fold, fold_errors, overwrite, table


def said(rank, *texts, error=None):
    output = RankOutput(rank, error=error)
    for text in texts:
        output.add_text("stdout", text)
    return output


def test_equal_output_is_one_block():
    outputs = {0: said(0, "a\n"), 1: said(1, "b\n"), 2: said(2, "a", "\n"), 3: said(3)}
    blocks = fold(outputs)
    assert [block.ranks for block in blocks] == [(0, 2), (1,)]
    assert str(blocks[0].pieces[0].text) == "a\n"


def test_order_of_pieces_matters_and_streams_are_joined():
    first, second = said(0, "x"), said(1, "x")
    first.add_data("display", {"image/png": "AAAA"})
    second.add_data("display", {"image/png": "BBBB"})
    first.add_text("stderr", "warned")
    assert [block.ranks for block in fold({0: first, 1: second})] == [(0,), (1,)]
    assert (first.stdout, first.stderr, first.displays) == ("x", "warned", [{"image/png": "AAAA"}])
    first.add_data("result", {"text/plain": "42"})
    assert first.result == "42" and second.result is None


def test_figures_are_not_folded():
    outputs = {rank: said(rank, "same") for rank in range(3)}
    for rank in (0, 1):
        outputs[rank].add_data("display", {"image/png": "AAAA"})
    assert [block.ranks for block in fold(outputs)] == [(0,), (1,), (2,)]


def test_errors_fold_by_name_and_message():
    failure = CellFailure("ValueError", "bad", "traceback of rank 1")
    outputs = {
        0: said(0),
        1: said(1, error=failure),
        2: said(2, error=CellFailure("ValueError", "bad", "traceback of rank 2")),
        3: said(3, error=CellFailure("KeyError", "'k'", "other")),
    }
    assert fold_errors(outputs) == [((1, 2), failure), ((3,), outputs[3].error)]


def test_long_output_keeps_both_ends_and_counts():
    text = "".join(f"{number}\n" for number in range(1000))
    lines = elide(text, lines=10, last=4).splitlines()
    assert lines == ["0", "1", "2", "3", "4", "5", "... 990 lines left out ...", "996", "997", "998", "999"]
    assert elide("short\n") == "short\n"


def test_a_flood_is_bounded_in_memory():
    text = BoundedText(keep=1000)
    for number in range(100_000):
        text.append(f"{number}\n")
    kept = str(text)
    assert len(kept) < 2200 and kept.startswith("0\n1\n") and kept.endswith("99999\n") and "lines not kept" in kept


def test_a_hundred_thousand_lines_of_eight_ranks_fold_into_one_block():
    flood = "".join(f"step {number} loss 0.123\n" for number in range(100_000))
    blocks = fold({rank: said(rank, flood) for rank in range(8)})
    shown = elide(str(blocks[0].pieces[0].text))
    assert len(blocks) == 1 and len(shown.splitlines()) == 401


def test_progress_bars_are_one_line():
    assert overwrite("a\n 1%\r50%\r100%\nend") == "a\n100%\nend"
    assert overwrite("dos\r\nline") == "dos\nline"


def test_table():
    assert table([("1", "long cell"), ("22", "")], ("a", "b")) == "a   b\n1   long cell\n22"
