"""Output of ranks: limited in memory, grouped by ranks, shortened for display."""

from workbench.cluster.output import (
    BoundedText,
    CellFailure,
    RankOutput,
    elide,
    group_errors,
    group_output,
)
from workbench.cluster.screen import on_screen


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


def test_one_part_without_lines_is_limited_too():
    text = BoundedText(limit=1000)
    text.append("a" + "x" * 1_000_000)
    text.append("y" * 50_000 + "z")
    kept = str(text)
    assert len(kept) < 3200 and kept.startswith("a") and kept.endswith("z") and "characters dropped ..." in kept
    shown = elide("a" * 300_000 + "b" * 300_000)
    assert len(shown) < 210_000 and "... 400,000 characters left out ..." in shown and shown[-1] == "b"


def test_equal_output_of_100_000_lines_on_eight_ranks_forms_one_block():
    flood = "".join(f"step {number} loss 0.123\n" for number in range(100_000))
    blocks = group_output({rank: make_output(rank, flood) for rank in range(8)})
    shown = elide(str(blocks[0].pieces[0].text))
    assert len(blocks) == 1 and len(shown.splitlines()) == 401


def test_a_progress_bar_becomes_one_line():
    assert on_screen("a\n 1%\r50%\r100%\nend") == "a\n100%\nend"
    assert on_screen("dos\r\nline") == "dos\nline"


def test_nested_progress_bars_become_a_line_each():
    from io import StringIO

    from tqdm import tqdm

    text = StringIO()
    for _ in tqdm(range(2), desc="outer", file=text, mininterval=0, ascii=True):
        for _ in tqdm(range(3), desc="inner", file=text, mininterval=0, ascii=True, leave=False):
            pass
    lines = [line for line in on_screen(text.getvalue()).split("\n") if line]
    assert len(lines) == 1 and lines[0].startswith("outer: 100%|") and " 2/2 [" in lines[0]


def bar(done, total=30, title="epoch", rate="9.8it/s"):
    return f"\r{title}: {100 * done // total:3d}%|###  | {done}/{total} [00:01<00:02, {rate}]"


def test_bars_of_ranks_are_shown_once_with_the_rank_that_is_last():
    texts = {0: "start\n" + bar(1) + bar(9), 1: "start\n" + bar(1) + bar(8, rate="8.8it/s"), 2: "start\n" + bar(9)}
    (block,) = group_output({rank: make_output(rank, text) for rank, text in texts.items()})
    assert block.ranks == (0, 1, 2)
    shown = on_screen(str(block.pieces[0].text)).split("\n")
    assert shown == ["start", "epoch:  26%|###  | 8/30 [00:01<00:02, 8.8it/s]  rank 1 is last; up to 9"]
    (ended,) = group_output({rank: make_output(rank, bar(30, rate=f"{rank}it/s") + "\n") for rank in (0, 1)})
    assert str(ended.pieces[0].text) == "epoch: 100%|###  | 30/30 [00:01<00:02, 0it/s]\n"


def test_other_bars_and_other_lines_are_shown_by_rank():
    for other in (bar(9, title="test"), bar(9, total=40), bar(9) + "\nloss 2"):
        outputs = {0: make_output(0, bar(9) + "\nloss 1"), 1: make_output(1, other)}
        assert len(group_output(outputs)) == 2
