"""Synthetic rooms: impulse responses of empty boxes by the image-source method (Allen and Berkley, 1979)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aura.audio.waveform import SAMPLE_RATE

SPEED_OF_SOUND = 343.0  # m/s
SIDES_M = ((3.0, 8.0), (2.5, 6.0), (2.4, 3.5))  # length, width, height of the rooms we draw; our choice
REVERBERATION = (0.15, 0.6)  # s until the sound has fallen by 60 dB: offices and living rooms; our choice
DISTANCE_M = (0.3, 2.5)  # between mouth and microphone; our choice
TAIL = 2 / 3  # of the reverberation time is computed: the last 20 dB drown in any noise, and hold most of the images
MARGIN_M = 0.3  # both stay that far from every wall


@dataclass(frozen=True, kw_only=True)
class Room:
    """A box with a mouth and a microphone in it.

    Args:
        sides: length, width, height, metres.
        source, microphone: positions, metres from one corner.
        reverberation: seconds until the sound has fallen by 60 dB.
    """

    sides: tuple[float, float, float]
    source: tuple[float, float, float]
    microphone: tuple[float, float, float]
    reverberation: float

    @property
    def reflection(self) -> float:
        """Share of the pressure that a wall gives back, from Eyring's formula for the reverberation time."""
        length, width, height = self.sides
        volume = length * width * height
        surface = 2 * (length * width + length * height + width * height)
        # RT60 = 24 ln(10) V / (-c S ln(1 - a)), with 1 - a the share of the energy that is given back
        kept_energy = np.exp(-24 * np.log(10) * volume / (SPEED_OF_SOUND * surface * self.reverberation))
        return float(np.sqrt(kept_energy))


def draw_room(rng: np.random.Generator) -> Room:
    """A room, with mouth and microphone in it."""
    sides = tuple(float(rng.uniform(*side)) for side in SIDES_M)
    reverberation = float(rng.uniform(*REVERBERATION))
    distance = float(rng.uniform(*DISTANCE_M))
    low, high = np.full(3, MARGIN_M), np.array(sides) - MARGIN_M
    source = rng.uniform(low, high)
    direction = rng.standard_normal(3) * (1.0, 1.0, 0.3)  # mouths and microphones are at about one height
    microphone = np.clip(source + distance * direction / np.linalg.norm(direction), low, high)
    if np.linalg.norm(microphone - source) < MARGIN_M / 2:  # clipped into a corner
        microphone = np.array(sides) - source
    positions = (tuple(float(x) for x in place) for place in (source, microphone))
    return Room(sides=sides, source=next(positions), microphone=next(positions), reverberation=reverberation)  # type: ignore[arg-type]


def impulse_response(room: Room) -> np.ndarray:
    """Samples at 16 kHz from the direct sound on, which is 1 at sample 0.

    Each image of the mouth, mirrored at the walls, sounds at its distance over the speed of sound, as loud as 1 over that
    distance and as often weakened as it was mirrored; its sample is shared between the two neighbours of that time.
    """
    longest = SPEED_OF_SOUND * room.reverberation * TAIL
    axes = [
        _images(side, source, microphone, longest)
        for side, source, microphone in zip(room.sides, room.source, room.microphone, strict=True)
    ]
    (dx, bx), (dy, by), (dz, bz) = axes
    squares = dx[:, None, None] ** 2 + dy[None, :, None] ** 2 + dz[None, None, :] ** 2
    bounces = bx[:, None, None] + by[None, :, None] + bz[None, None, :]
    near = squares <= longest**2
    distances = np.sqrt(squares[near])
    direct = float(np.linalg.norm(np.subtract(room.source, room.microphone)))
    levels = room.reflection ** bounces[near] * (direct / distances)
    times = (distances - direct) / SPEED_OF_SOUND * SAMPLE_RATE
    first = np.floor(times).astype(np.int64)
    late = times - first
    response = np.zeros(int(first.max()) + 2)
    np.add.at(response, first, levels * (1.0 - late))
    np.add.at(response, first + 1, levels * late)
    return response.astype(np.float32)


def _images(side: float, source: float, microphone: float, longest: float) -> tuple[np.ndarray, np.ndarray]:
    """Along one axis: offset of each image from the microphone, metres, and at how many walls it was mirrored."""
    orders = np.arange(-int(longest / (2 * side)) - 1, int(longest / (2 * side)) + 2)
    offsets = np.concatenate([2 * orders * side + source - microphone, 2 * orders * side - source - microphone])
    bounces = np.concatenate([np.abs(2 * orders), np.abs(2 * orders - 1)])
    return offsets, bounces


def place_in_room(wave_N: np.ndarray, room: Room) -> np.ndarray:
    """The speech as the microphone hears it, as long as before plus the echo's end; level of the direct sound kept."""
    response = impulse_response(room)
    size = len(wave_N) + len(response) - 1
    padded = 1 << (size - 1).bit_length()
    heard = np.fft.irfft(np.fft.rfft(wave_N, padded) * np.fft.rfft(response, padded), padded)[:size]
    return heard.astype(np.float32)
