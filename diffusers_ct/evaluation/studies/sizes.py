"""How much each study measures: enough to see that it runs, or enough to print."""

from dataclasses import dataclass

from ...physics.phantom import Region


@dataclass(frozen=True)
class StudySize:
    """Arguments of the studies.

    Attributes:
        slab_slices: that a method gets at once, of the rod phantom.
        detectability_slices, noise_slices, transfer_slices: for each dose and method.
        detectability_doses, doses: of detectability, and of noise, transfer and insertion.
        diameters_mm, contrasts_hu: of inserted lesions.
        insertion_scans, insertion_slices, insertion_places: phantoms, slices and places of each.
        regions: of the phantoms, in turn.
    """

    slab_slices: int
    detectability_slices: int
    noise_slices: int
    transfer_slices: int
    detectability_doses: tuple[float, ...]
    doses: tuple[float, ...]
    diameters_mm: tuple[float, ...]
    contrasts_hu: tuple[float, ...]
    insertion_scans: int
    insertion_slices: int
    insertion_places: int
    regions: tuple[Region, ...]

    def slices(self) -> dict[str, int]:
        """Slices that each method restores in each study, all doses together."""
        lesions = len(self.diameters_mm) * len(self.contrasts_hu)
        return {
            "detectability": len(self.detectability_doses) * self.detectability_slices,
            "noise": len(self.doses) * self.noise_slices,
            "transfer": len(self.doses) * self.transfer_slices,
            "insertion": len(self.doses) * self.insertion_scans * self.insertion_slices * (1 + lesions),
        }


STUDY_SIZES: dict[str, StudySize] = {
    "smoke": StudySize(4, 24, 8, 8, (1.0, 0.25), (0.25,), (5.0,), (50.0,), 2, 8, 24, ("abdomen",)),
    "standard": StudySize(
        8,
        192,
        24,
        48,
        (1.0, 0.5, 0.25, 0.1),
        (0.25, 0.1),
        (3.0, 5.0, 8.0),
        (10.0, 20.0, 50.0),
        4,
        8,
        36,
        ("abdomen", "abdomen", "abdomen", "thorax"),  # a thorax of 8 slices has room for 5 lesions, an abdomen for 35
    ),
}
