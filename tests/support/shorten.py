"""A writer of SPHERE files with embedded shorten, so that tests have what the LDC ships: there is no packaged encoder.

The bit stream is that of T. Robinson, "SHORTEN: simple lossless and near-lossless waveform compression" (CUED/F-INFENG
TR.156, 1994), version 2 of the format: blocks predicted by a polynomial of order 0 to 3, residuals in Rice codes.
"""

import numpy as np

TYPE_BIG_ENDIAN, TYPE_LITTLE_ENDIAN = 3, 5  # 16-bit samples
QUIT, BLOCK_SIZE, ZERO = 4, 5, 8  # commands; 0 to 3 are the predictors by their order
COMMAND_BITS, ENERGY_BITS, LONG_BITS = 2, 3, 2  # Rice parameters of those fields
HEADER_BYTES = 1024


def rice(value: int, low_bits: int) -> str:
    """An unsigned number: its high part in zeros ended by a one, its low part in binary."""
    low = format(value & ((1 << low_bits) - 1), f"0{low_bits}b") if low_bits else ""
    return "0" * (value >> low_bits) + "1" + low


def long(value: int) -> str:
    """A header field: the number of bits it needs, then the number."""
    return rice(value.bit_length(), LONG_BITS) + rice(value, value.bit_length())


def signed(value: int, low_bits: int) -> str:
    return rice(2 * value if value >= 0 else -2 * value - 1, low_bits + 1)


def block(samples: np.ndarray, before: np.ndarray) -> str:
    """One block; `before` holds the three samples before it."""
    if not samples.any():
        return rice(ZERO, COMMAND_BITS)
    signal = np.concatenate([before, samples])
    residuals = [np.diff(signal, n=order)[3 - order :] for order in range(4)]
    order = int(np.argmin([np.abs(residual).sum() for residual in residuals]))
    low_bits = int(np.log2(max(1.0, np.abs(residuals[order]).mean())))
    codes = "".join(signed(int(residual), low_bits) for residual in residuals[order])
    return rice(order, COMMAND_BITS) + rice(low_bits, ENERGY_BITS) + codes


def shorten(samples: np.ndarray, block_size: int = 256, sample_type: int = TYPE_LITTLE_ENDIAN) -> bytes:
    """Compress 16-bit samples (one channel)."""
    signal = np.concatenate([np.zeros(3, np.int64), np.asarray(samples, np.int64)])
    no_predictor_taps = no_mean_blocks = no_skipped_bytes = 0
    header = (sample_type, 1, block_size, no_predictor_taps, no_mean_blocks, no_skipped_bytes)
    bits = [long(field) for field in header]
    for start in range(3, len(signal), block_size):
        current = signal[start : start + block_size]
        if len(current) < block_size:
            bits.append(rice(BLOCK_SIZE, COMMAND_BITS) + long(len(current)))
        bits.append(block(current, signal[start - 3 : start]))
    stream = "".join([*bits, rice(QUIT, COMMAND_BITS)])
    stream += "0" * (-len(stream) % 32)
    return b"ajkg\x02" + int(stream, 2).to_bytes(len(stream) // 8, "big")


def sphere(samples: np.ndarray, *, shortened: bool = True, big_endian: bool = False, rate: int = 16_000) -> bytes:
    """A SPHERE file as on the WSJ discs, with shorten inside or without."""
    if shortened:
        body = shorten(samples, sample_type=TYPE_BIG_ENDIAN if big_endian else TYPE_LITTLE_ENDIAN)
    else:
        body = np.asarray(samples).astype(">i2" if big_endian else "<i2").tobytes()
    coding = "pcm,embedded-shorten-v2.00" if shortened else "pcm"
    lines = [
        "NIST_1A",
        f"{HEADER_BYTES:7d}",
        "database_id -s4 WSJ0",
        "utterance_id -s8 test0000",
        "channel_count -i 1",
        f"sample_count -i {len(samples)}",
        f"sample_rate -i {rate}",
        f"sample_min -i {int(np.min(samples))}",
        f"sample_max -i {int(np.max(samples))}",
        "sample_n_bytes -i 2",
        f"sample_byte_format -s2 {'10' if big_endian else '01'}",
        "sample_sig_bits -i 16",
        f"sample_coding -s{len(coding)} {coding}",
        "end_head",
    ]
    return ("\n".join(lines) + "\n").encode().ljust(HEADER_BYTES) + body
