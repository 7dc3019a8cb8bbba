"""Label selectors against Kubernetes' semantics, written out a second time from its documentation."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from posemesh.runners.selector import parse_selector

KEYS = st.sampled_from(["tier", "zone", "gpu"])
VALUES = st.sampled_from(["", "a", "b", "A"])
LABELS = st.dictionaries(KEYS, VALUES)
EXPRESSIONS = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {"key": KEYS, "operator": st.sampled_from(["In", "NotIn"]), "values": st.lists(VALUES, min_size=1)}
        ),
        st.fixed_dictionaries(
            {"key": KEYS, "operator": st.sampled_from(["Exists", "DoesNotExist"])},
            optional={"values": st.sampled_from([[], None])},
        ),
    ),
    max_size=3,
)
SELECTORS = st.fixed_dictionaries({}, optional={"matchLabels": LABELS, "matchExpressions": EXPRESSIONS})


def oracle(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    for key, value in selector.get("matchLabels", {}).items():
        if key not in labels or labels[key] != value:
            return False
    for clause in selector.get("matchExpressions", []):
        key, values = clause["key"], clause.get("values") or []
        if clause["operator"] == "In" and (key not in labels or labels[key] not in values):
            return False
        if clause["operator"] == "NotIn" and key in labels and labels[key] in values:
            return False
        if clause["operator"] == "Exists" and key not in labels:
            return False
        if clause["operator"] == "DoesNotExist" and key in labels:
            return False
    return True


@given(SELECTORS, LABELS)
def test_a_selector_matches_what_kubernetes_says(selector: dict[str, Any], labels: dict[str, str]) -> None:
    parsed = parse_selector(selector)
    assert parsed.matches(labels) == oracle(selector, labels)
    assert (parsed.missed_by(labels) is None) == parsed.matches(labels)
