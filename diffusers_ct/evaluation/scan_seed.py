"""A seed for each scan: noise that all scans of a test share would pass for structure."""

import hashlib

import numpy as np

from ..volume import CTVolume


def seed_of_scan(volume: CTVolume, *parts: int) -> int:
    """Follows the scan's voxels and the given numbers (a run's seed, a sample's number); the same on every machine."""
    digest = hashlib.sha256(np.ascontiguousarray(np.round(volume.hu), dtype="<i2").tobytes())
    words = np.frombuffer(digest.digest()[:16], dtype="<u4").tolist()
    return int(np.random.SeedSequence([*parts, *words]).generate_state(1, np.uint64)[0] >> 1)
