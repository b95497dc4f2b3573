"""Robot episodes as LeRobot datasets: written as v3.0 with the simulator's own state beside them, read as
v2.0, v2.1 and v3.0.

Tables are parquet, pictures mp4, privileged state npz; pyarrow, PyAV and NumPy are all it takes. Nothing here
imports a simulator or torch.
"""

from refinevla_kit.episodes.contract import Episode, EpisodeInfo
from refinevla_kit.episodes.reader import EpisodeDataset, open_dataset
from refinevla_kit.episodes.writer import DatasetWriter

__all__ = ["DatasetWriter", "Episode", "EpisodeDataset", "EpisodeInfo", "open_dataset"]
