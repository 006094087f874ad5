from __future__ import annotations

import pytest
from ClusterShell.NodeSet import NodeSet
from hypothesis import given
from hypothesis import strategies as st

from segformer_spark.distributed.host_list import expand_hosts
from segformer_spark.errors import UserError

NUMBERS = st.integers(0, 12).flatmap(
    lambda first: st.integers(first, first + 4).flatmap(
        lambda last: st.integers(1, 3).map(lambda width: f"{first:0{width}d}-{last:0{width}d}")
    )
)
BRACKETS = st.lists(st.one_of(NUMBERS, st.integers(0, 99).map(str)), min_size=1, max_size=3).map(
    lambda parts: f"[{','.join(parts)}]"
)
NAME = st.sampled_from(["node", "gpu-", "rack1.", "mel"])
ENTRY = st.one_of(
    NAME.map(lambda name: f"{name}x"),
    st.builds(lambda name, numbers: name + numbers, NAME, BRACKETS),
    st.builds(lambda name, first, second: f"{name}{first}-b{second}", NAME, BRACKETS, BRACKETS),
    st.builds(lambda name, first: f"{name}{first}-ib", NAME, BRACKETS),
)


@given(st.lists(ENTRY, min_size=1, max_size=3).map(",".join))
def test_the_set_is_clustershells(hosts: str) -> None:
    assert set(expand_hosts(hosts)) == set(NodeSet(hosts))


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ("node7", ["node7"]),
        ("gpu[003-005,9],login1", ["gpu003", "gpu004", "gpu005", "gpu9", "login1"]),
        ("rack[0-1]_blade[0-1]", ["rack0_blade0", "rack0_blade1", "rack1_blade0", "rack1_blade1"]),
        ("rack[1-2]-node[03-04]", ["rack1-node03", "rack1-node04", "rack2-node03", "rack2-node04"]),
        ("a[1-2]-ib.cluster", ["a1-ib.cluster", "a2-ib.cluster"]),
        ("n[98-101]", ["n98", "n99", "n100", "n101"]),
        ("b,a", ["b", "a"]),
    ],
)
def test_the_order_is_slurms(hosts: str, expected: list[str]) -> None:
    """As `scontrol show hostnames` printed them; tests/slurm asks it again."""
    assert expand_hosts(hosts) == expected


@pytest.mark.parametrize(
    "hosts", ["", "n[", "n]", "n[a]", "n[]", "n[3-1]", "a,,b", "a,", "n[1-2", "n[1-99999999]", "a b"]
)
def test_what_is_no_host_list(hosts: str) -> None:
    with pytest.raises(UserError, match="is not a list of hosts"):
        expand_hosts(hosts)


@given(st.text("n[]-,0123a._", max_size=12))
def test_any_text_is_a_list_or_an_error(text: str) -> None:
    try:
        names = expand_hosts(text)
    except UserError:
        return
    assert all(names)
    assert not any(set(name) & set("[],") for name in names)
