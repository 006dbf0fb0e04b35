"""Reads and writes safetensors files without any library."""
import json
import struct
from pathlib import Path


def bfloat16_of(values):
    """Floats rounded to bfloat16, ties to even."""
    bits = struct.unpack(f"<{len(values)}I", struct.pack(f"<{len(values)}f", *values))
    return struct.pack(f"<{len(bits)}H", *((b + 0x7FFF + (b >> 16 & 1)) >> 16 for b in bits))


def read_safetensors(file):
    """name → (dtype, shape, bytes)"""
    data = Path(file).read_bytes()
    start = 8 + struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return {name: (entry["dtype"], entry["shape"], data[start + entry["data_offsets"][0]:start + entry["data_offsets"][1]])
            for name, entry in header.items()}


def floats_of(dtype, data):
    """The numbers of F32 or BF16 bytes."""
    if dtype == "F32":
        return struct.unpack(f"<{len(data) // 4}f", data)
    assert dtype == "BF16", dtype
    return struct.unpack(f"<{len(data) // 2}f", b"".join(b"\0\0" + data[i:i + 2] for i in range(0, len(data), 2)))


def read_tensors(folder):
    """name → its numbers, of every safetensors file in the folder"""
    return {name: floats_of(dtype, data) for file in sorted(Path(folder).glob("*.safetensors"))
            for name, (dtype, _, data) in read_safetensors(file).items()}


def write_safetensors(file, tensors):
    header, offset = {"__metadata__": {"format": "mlx"}}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    Path(file).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))
