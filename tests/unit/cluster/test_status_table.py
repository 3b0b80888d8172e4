"""The table of ``%dist_status``."""

from magics.cluster import StatusTable
from workbench.cluster.status import RankStatus


def test_text_and_html_show_the_same_values_and_html_is_escaped():
    ranks = (
        RankStatus(
            rank=0, pid=12, host="h", device="cpu", cores=(0, 1), memory_bytes=3 << 29, state="training", step=7
        ),
        RankStatus(
            rank=1, pid=13, host="h", device="cuda:0", cores=(), memory_bytes=0, state="dead", warning="<killed>"
        ),
    )
    shown = StatusTable(ranks, ("too many",))
    text, html = repr(shown), shown._repr_html_()
    for word in ("0-1", "1.50 GiB", "training", "not pinned", "cuda:0", "warning: too many"):
        assert word in text and word in html
    assert "&lt;killed&gt;" in html and "<killed>" not in html
