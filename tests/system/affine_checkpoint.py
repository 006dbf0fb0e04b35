"""Writes a bfloat16 checkpoint anew in MLX's affine quantisation, by the arithmetic of mlx.core.quantize."""
import array
import json
import shutil
import struct
from pathlib import Path

GROUP = 64


def floats_of(bfloat16):
    """bfloat16 bytes as floats: they are a float32's upper half."""
    wide = bytearray(2 * len(bfloat16))
    wide[2::4], wide[3::4] = bfloat16[0::2], bfloat16[1::2]
    values = array.array("f")
    values.frombytes(bytes(wide))
    return values


def bfloat16_of(values):
    """Floats rounded to bfloat16, ties to even."""
    bits = struct.unpack(f"<{len(values)}I", struct.pack(f"<{len(values)}f", *values))
    return struct.pack(f"<{len(bits)}H", *((b + 0x7FFF + (b >> 16 & 1)) >> 16 for b in bits))


def float32(values):
    """Each value rounded to float32, the type that MLX computes in."""
    return array.array("f", values)


def quantise_group(group, top):
    """Codes 0 to `top`, scale and bias: the end of larger magnitude is met exactly, and so is zero."""
    low, high = min(group), max(group)
    scale = max(float32([float32([high - low])[0] / top])[0], 1e-7)
    edge, scale = (low, scale) if abs(low) > abs(high) else (high, -scale)
    steps = round(float32([edge / scale])[0])
    scale, bias = (float32([edge / steps])[0], edge) if steps else (scale, 0.0)
    quotients = float32([w / scale for w in float32([w - bias for w in group])])
    return [min(max(round(q), 0), top) for q in quotients], scale, bias


def quantise(bfloat16, bits):
    """A tensor's bytes → those of its codes, scales and biases."""
    weights, codes, scales, biases = floats_of(bfloat16), bytearray(), [], []
    for first in range(0, len(weights), GROUP):
        some, scale, bias = quantise_group(weights[first:first + GROUP], 2**bits - 1)
        codes += bytes(some) if bits == 8 else bytes(a | b << 4 for a, b in zip(some[0::2], some[1::2]))
        scales.append(scale)
        biases.append(bias)
    return bytes(codes), bfloat16_of(scales), bfloat16_of(biases)


def read_safetensors(file):
    """name → (dtype, shape, bytes)"""
    data = Path(file).read_bytes()
    start = 8 + struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return {name: (entry["dtype"], entry["shape"], data[start + entry["data_offsets"][0]:start + entry["data_offsets"][1]])
            for name, entry in header.items()}


def write_safetensors(file, tensors):
    header, offset = {"__metadata__": {"format": "mlx"}}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    Path(file).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))


def write_quantised(source, folder, bits):
    """The checkpoint `source` with every matrix in 4 or 8 bits, GROUP weights a scale, into the new `folder`."""
    shutil.copytree(source, folder)
    tensors = {}
    for name, (dtype, shape, data) in read_safetensors(Path(source) / "model.safetensors").items():
        if len(shape) != 2:
            tensors[name] = (dtype, shape, data)
            continue
        stem, (rows, columns) = name.removesuffix(".weight"), shape
        codes, scales, biases = quantise(data, bits)
        tensors[name] = ("U32", [rows, columns * bits // 32], codes)
        tensors[stem + ".scales"] = ("BF16", [rows, columns // GROUP], scales)
        tensors[stem + ".biases"] = ("BF16", [rows, columns // GROUP], biases)
    write_safetensors(Path(folder) / "model.safetensors", tensors)
    config = json.loads((Path(source) / "config.json").read_text())
    config["quantization"] = {"group_size": GROUP, "bits": bits, "mode": "affine"}
    (Path(folder) / "config.json").write_text(json.dumps(config))
