"""Frames to and from mp4. Encoding gives the same bytes for the same frames; decoding finds a frame by its
number, exactly.

Colours: swscale's fast path rounds down, one grey level on average, each way. A policy trained on video would
see that, and a simulator would not show it. The accurate path is used both ways: what remains at crf 14
is the chroma subsampling of yuv420p, about 1 level on average.
"""

from __future__ import annotations

import errno
import logging
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from refinevla_kit.episodes.meta import behind, reading
from refinevla_kit.errors import KitError
from refinevla_kit.simulator.contract import Array

CODEC, PIXELS = "libx264", "yuv420p"
OPTIONS = {"crf": "14", "preset": "medium", "g": "10", "bf": "0", "forced-idr": "1"}
if platform.machine() in ("x86_64", "AMD64"):
    # no more than SSSE3: with AVX-512 x264 writes one frame in about 5,400 with other bytes each time
    OPTIONS["x264-params"] = "asm=sse2,ssse3"
SCALING: dict[str, Any] = {"interpolation": 0x4 | 0x2000 | 0x40000}  # BICUBIC | FULL_CHR_H_INT | ACCURATE_RND
if int(av.__version__.split(".")[0]) >= 17:
    SCALING["threads"] = 1  # waking one for each core takes longer than a picture
SEEK_AFTER = 30  # frames; a nearer frame is reached sooner by decoding on than by seeking
REMEDY = "the file is cut off or damaged: copy or download the dataset again"
RATE = "correct fps in meta/info.json, or write the videos anew at its rate"

logging.getLogger("libav").setLevel(logging.CRITICAL)  # its complaints come as exceptions too


class VideoWriter:
    """Encodes frames into one mp4; each call of `write` starts with a key frame, so episodes can be cut out
    without re-encoding.
    """

    def __init__(self, path: Path, fps: int, height: int, width: int) -> None:
        self.path, self.frames, self.bytes = path, 0, 0  # bytes encoded so far
        self._failed = False
        # yuv420p takes even sizes only: the last row or column is doubled
        self._margins = ((0, height % 2), (0, width % 2), (0, 0))
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            # the format is said, because a temporary name has another ending
            self._container = av.open(str(path), "w", format="mp4")
        stream: Any = self._container.add_stream(CODEC, rate=fps, options=OPTIONS)
        stream.height, stream.width, stream.pix_fmt = height + height % 2, width + width % 2, PIXELS
        stream.codec_context.thread_count = 1  # threads would change the bytes
        stream.codec_context.time_base = Fraction(1, fps)
        self._stream = stream

    def write(self, images: Array) -> None:
        """images: uint8 (T, H, W, 3)."""
        with self._writing():
            for i, image in enumerate(images):
                even = np.pad(image, self._margins, mode="edge")
                rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), "rgb24")
                frame = rgb.reformat(format=PIXELS, **SCALING)
                frame.pts = self.frames
                kinds = av.video.frame.PictureType
                frame.pict_type = kinds.I if i == 0 else kinds.NONE
                packets = self._stream.encode(frame)
                self.bytes += sum(packet.size for packet in packets)
                self._container.mux(packets)
                self.frames += 1

    def close(self, flush: bool = True) -> None:
        """Finish the file. After a `write` that failed nothing more is written: muxing on after a full disk
        crashes inside FFmpeg.
        """
        with self._writing():
            try:
                if flush and not self._failed:
                    self._container.mux(self._stream.encode())
            finally:
                self._container.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A full or read-only disk in one line."""
        try:
            yield
        except (OSError, av.error.FFmpegError) as error:
            self._failed = True
            what = f"video {self.path} cannot be written ({error.strerror or error})"
            if error.errno == errno.ENOSPC:
                what = f"no space left on the disk while writing {self.path}"
            raise KitError(what, "free space or choose another output folder") from error
        except BaseException:
            self._failed = True
            raise


def count_frames(path: Path, fps: float) -> int:
    """Number of frames of a video without decoding any, from its index or, where that says nothing, from its
    packets.

    Raises:
        KitError: missing or damaged file, or one that runs at another rate than `fps`.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        frames = int(stream.frames) or sum(packet.size > 0 for packet in container.demux(stream))
        if frames > 1 and (other := _other_rate(stream, fps, 0.02)):
            raise KitError(f"video {path} {other}", RATE)
        return frames


def read_frames(path: Path, wanted: Sequence[int], fps: float) -> Array:
    """Decode frames by number.

    Args:
        path: a video in any codec FFmpeg knows (H.264, AV1, ...).
        wanted: frame numbers within the file, in any order.
        fps: frames a second, by which time stamps become numbers.

    Returns:
        uint8 (len(wanted), H, W, 3) RGB.

    Raises:
        KitError: missing or damaged file, or one that ends before a wanted frame.
    """
    found: dict[int, Array] = {}
    frames: Iterator[Any] = iter(())
    at = -SEEK_AFTER - 1  # number of the last decoded frame; none yet
    with _opened(path) as container:
        stream = container.streams.video[0]
        start, base = stream.start_time or 0, float(stream.time_base)
        for number in sorted(set(wanted)):
            if not at < number <= at + SEEK_AFTER:
                place = start + int((number + 0.5) / fps / base)
                # A file that cannot seek back to its beginning is read from where it stands.
                with suppress(av.error.PermissionError):
                    container.seek(place, stream=stream, backward=True, any_frame=False)
                frames = container.decode(stream)
            for frame in frames:
                at = round((frame.pts - start) * base * fps)
                if at >= number:
                    break
            if at != number:
                what = f"{path} has no frame {number} (it ends at {max(at, 0)})"
                other = _other_rate(stream, fps, 0.0002)
                raise KitError(f"{what}: it {other}" if other else what, RATE if other else REMEDY)
            found[number] = frame.to_ndarray(format="rgb24", **SCALING)
        if not found:
            return np.zeros((0, stream.height, stream.width, 3), np.uint8)
    return np.stack([found[number] for number in wanted])


def _other_rate(stream: Any, fps: float, share: float) -> str:
    """What to say of a video whose frames come faster or slower than `fps` by more than `share` of it; else
    "".
    """
    rate = float(stream.average_rate or fps)
    return "" if abs(rate / fps - 1) <= share else f"runs at {rate:g} frames a second, info.json says {fps:g}"


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A video's container; errors on opening and on decoding are one line."""
    with reading(path, REMEDY), av.open(str(behind(path))) as container:
        if not container.streams.video:
            raise ValueError("it holds no video")
        yield container
