"""The objective that a CZI's image was taken with, of several that its microscope has. Pure."""

from __future__ import annotations

from lxml import etree

IMAGE, OBJECTIVES = "Metadata/Information/Image", "Metadata/Information/Instrument/Objectives/Objective"


def power(root: etree._Element) -> float | None:
    """NominalMagnification of the objective to which the image refers, where there are several and it can be told.

    Bio-Formats 7.3.1 gives every image the first one, whatever ObjectiveRef says: seen in its output, not documented.
    """
    lenses = root.findall(OBJECTIVES)
    named = {ref.get("Id") for ref in root.findall(f"{IMAGE}/ObjectiveSettings/ObjectiveRef")}
    meant = [lens for lens in lenses if lens.get("Id") in named]
    if len(lenses) < 2 or len(meant) != 1:
        return None
    try:
        found = float(meant[0].findtext("NominalMagnification") or "")
    except ValueError:
        return None
    return found if 0 < found < 1000 else None
