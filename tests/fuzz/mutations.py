"""Damage a file as disks, networks and strangers do: bytes, and, so that checksums and headers do not end it at once,
the parts inside of JSON, text, gzip, zip, tar, PNG, safetensors, Parquet and MATLAB files."""

import contextlib
import gzip
import io
import json
import re
import struct
import tarfile
import warnings
import zipfile
import zlib

NUMBERS = [0, 1, -1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, -(2**31)]
SCALARS = [
    None, True, False, 0, -1, 0.5, 1e308, -1e-300, 2**31, 2**63, 10**30, float("nan"), float("inf"), "", "0", "é",
    "\ud83d", "\0", "a\nb", "\u202eout", "../..", "/etc/passwd", "x" * 5000, [], {}, [[]], [None], {"": None}, "{",
    "nan", "$(x)",
]  # fmt: skip
TEXTS = [
    "", "-1", "nan", "1e999", "9" * 400, "null", "~", "\t", "\n", "\r", "\0", "\ufeff", "\x85", "\u2028", "'", '"', "{",
    "[" * 2000, "&a", "*a", "!!python/name:os.system", "<<: *a", "é", "\ud800", "\x1b[2J", ",", ":", "#", "../../x",
    "%s",
]  # fmt: skip


def damaged(data: bytes, rng, others=()) -> bytes:
    """`data`, changed in one to three places. others: contents of further files, to splice with."""
    for _ in range(int(rng.integers(1, 4))):
        inner = _inner(data) if rng.random() < 0.7 else None
        try:
            data = inner(data, rng) if inner else _bytes(data, rng, others)
        except Exception:  # it is too damaged for its own format
            data = _bytes(data, rng, others)
    return data


def _inner(data: bytes):
    starts = {
        b"\x1f\x8b": _gzip, b"PK\x03\x04": _zip, b"\x89PNG": _png, b"PAR1": _parquet, b"MATLAB 5.0": _mat,
    }  # fmt: skip
    for start, change in starts.items():
        if data.startswith(start):
            return change
    if data[257:262] == b"ustar":
        return _tar
    if data[8:9] == b"{" and len(data) > 8 and struct.unpack("<Q", data[:8])[0] < len(data):
        return _safetensors
    if data[:1] in (b"{", b"["):
        return _json
    if data and all(byte >= 32 or byte in (9, 10, 13) for byte in data[:2000]):
        return _text
    return None


def _bytes(data: bytes, rng, others) -> bytes:
    size = len(data)
    at = int(rng.integers(size + 1))
    length = int(rng.integers(1, 1 + min(64, max(1, size))))
    match rng.integers(9):
        case 0:  # bits
            out = bytearray(data)
            for spot in rng.integers(size, size=rng.integers(1, 9)) if size else ():
                out[spot] ^= 1 << int(rng.integers(8))
            return bytes(out)
        case 1:
            return data[:at]
        case 2:
            return data[:at] + rng.bytes(length) + data[at:]
        case 3:
            return data[:at] + data[at + length :]
        case 4:
            return data[: at + length] + data[at:]
        case 5 if others:  # begins as one file, ends as another
            other = others[rng.integers(len(others))]
            return data[:at] + other[int(rng.integers(len(other) + 1)) :]
        case 6 if others and rng.random() < 0.2:  # another file under this name
            return others[rng.integers(len(others))]
        case 7:
            return data[:at] + bytes([int(rng.choice([0, 255, 32]))]) * length + data[at + length :]
        case _:  # a field of numbers
            code = "bhiq"[rng.integers(4)]
            order, width = "<>"[rng.integers(2)], struct.calcsize(code)
            number = NUMBERS[rng.integers(len(NUMBERS))] % 2 ** (8 * width)
            return data[:at] + struct.pack(order + code.upper(), number) + data[at + width :]


def _json(data: bytes, rng) -> bytes:
    if rng.random() < 0.1:
        return _text(data, rng)
    value = json.loads(data)
    places = []

    def walk(node):
        for key, inner in node.items() if isinstance(node, dict) else enumerate(node):
            places.append((node, key))
            if isinstance(inner, dict | list):
                walk(inner)

    walk([value])
    node, key = places[rng.integers(len(places))]
    new = SCALARS[rng.integers(len(SCALARS))]
    if rng.random() < 0.1:
        new = json.loads("[" * 400 + "]" * 400)
    old = node[key]
    match rng.integers(6):
        case 0 if len(places) > 1:
            del node[key]
        case 1 if isinstance(old, list) and old:
            old.append(old[rng.integers(len(old))])
        case 2 if isinstance(old, dict):
            old[str(new)[:20]] = new
        case 3 if isinstance(old, int | float):
            node[key] = [-old, old + 1, old * 1000, float(old), str(old), old / 3][rng.integers(6)]
        case 4:  # the value of another place
            other, name = places[rng.integers(len(places))]
            node[key] = json.loads(json.dumps(other[name])) if name in other or isinstance(other, list) else new
        case _:
            node[key] = new
    return json.dumps(value if places[0][0] is not node else node[0]).encode()


def _text(data: bytes, rng) -> bytes:
    text = data.decode("utf-8", "surrogateescape")
    new = TEXTS[rng.integers(len(TEXTS))]
    lines = text.split("\n")
    line = int(rng.integers(len(lines)))
    match rng.integers(6):
        case 0:
            del lines[line]
        case 1:
            lines.insert(line, lines[rng.integers(len(lines))])
        case 2:
            lines[line] = new
        case 3:
            lines.insert(line, new)
        case _:
            words = list(re.finditer(r"[\w.]+|\s|[^\w\s]", text))
            word = words[rng.integers(len(words))]
            text = text[: word.start()] + new + text[word.end() :]
            return text.encode("utf-8", "surrogatepass" if "\ud800" in text else "surrogateescape")
    return "\n".join(lines).encode("utf-8", "surrogatepass" if "\ud800" in "".join(lines) else "surrogateescape")


def _gzip(data: bytes, rng) -> bytes:
    return gzip.compress(damaged(gzip.decompress(data), rng), 1)


def _zip(data: bytes, rng) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that is there twice
        members = [(info, old.read(info)) for info in old.infolist()]
        chosen = int(rng.integers(len(members)))
        info, content = members[chosen]
        what = rng.random()
        if what < 0.7:
            members[chosen] = info, _npy(content, rng) if content[:6] == b"\x93NUMPY" else damaged(content, rng)
        elif what < 0.8:
            del members[chosen]
        elif what < 0.9:
            members.append((info, content))
        else:
            info.filename = _word(rng)
        for info, content in members:
            new.writestr(info, content)
    return out.getvalue()


def _word(rng) -> str:
    return [value for value in SCALARS if isinstance(value, str) and value.isprintable()][rng.integers(6)] or "x"


def _npy(data: bytes, rng) -> bytes:
    length = struct.unpack("<H", data[8:10])[0]
    header = data[10 : 10 + length].decode("latin1")
    if rng.random() < 0.5:
        numbers = list(re.finditer(r"\d+", header)) or list(re.finditer("'", header))
        place = numbers[rng.integers(len(numbers))]
        header = header[: place.start()] + str(NUMBERS[rng.integers(len(NUMBERS))]) + header[place.end() :]
        return data[:8] + struct.pack("<H", len(header)) + header.encode("latin1") + data[10 + length :]
    if rng.random() < 0.3:
        kinds = ["<f8", "|u1", "<i8", "|O", "<U4", "|b1", "<f2", "<c16", ">i2", "|V3", "<M8[s]"]
        header = re.sub(r"'descr': '[^']*'", f"'descr': '{kinds[rng.integers(len(kinds))]}'", header)
        return data[:8] + struct.pack("<H", len(header)) + header.encode("latin1") + data[10 + length :]
    return data[: 10 + length] + _bytes(data[10 + length :], rng, ())


def _tar(data: bytes, rng) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as old:
        members = [(info, old.extractfile(info).read() if info.isreg() else b"") for info in old]
    chosen = int(rng.integers(len(members)))
    info, content = members[chosen]
    what = rng.random()
    if what < 0.5:
        members[chosen] = info, damaged(content, rng)
    elif what < 0.6:
        del members[chosen]
    elif what < 0.7:
        members.append((info, content))
    elif what < 0.8:
        info.type = bytes([int(rng.choice(list(b"0123456gxLKSV")))])
    else:
        stem, dot, suffix = info.name.partition(".")
        info.name = (_word(rng) + dot + suffix) if rng.random() < 0.5 else stem + dot + _word(rng)
    with tarfile.open(fileobj=out, mode="w", errors="surrogateescape") as new:
        for info, content in members:
            info.size = len(content)
            new.addfile(info, io.BytesIO(content))
    return out.getvalue()


def _png(data: bytes, rng) -> bytes:
    chunks, at = [], 8
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        chunks.append([kind, data[at + 8 : at + 8 + size]])
        at += size + 12
    chosen = chunks[rng.integers(len(chunks))]
    match rng.integers(4):
        case 0:
            chunks.remove(chosen)
        case 1:
            chunks.append(chosen)
        case 2 if chosen[0] == b"IDAT":
            with contextlib.suppress(zlib.error):
                chosen[1] = zlib.compress(_bytes(zlib.decompress(chosen[1]), rng, ()))
        case _:
            chosen[1] = _bytes(chosen[1], rng, ())
    sealed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return data[:8] + b"".join(sealed)


def _safetensors(data: bytes, rng) -> bytes:
    length = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    what = rng.random()
    if what < 0.3:
        return data[: 8 + length] + _bytes(body, rng, ())
    for name, text in header.get("__metadata__", {}).items():
        if what < 0.6 and text[:1] == "{":
            header["__metadata__"][name] = _json(text.encode(), rng).decode("utf-8", "replace")
            new = json.dumps(header).encode()
            break
    else:
        new = _json(data[8 : 8 + length], rng)
    return struct.pack("<Q", len(new)) + new + body


def _parquet(data: bytes, rng) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(data))
    metadata = dict(table.schema.metadata or {})
    name = table.column_names[rng.integers(table.num_columns)]
    position, column = table.column_names.index(name), table[name]
    match rng.integers(7):
        case 0:
            table = table.drop_columns([name])
        case 1:
            table = table.set_column(position, name, pa.nulls(table.num_rows, column.type))
        case 2:
            table = table.set_column(position, name, column.cast(pa.string()))
        case 3:
            table = pa.concat_tables([table, table.slice(0, 1)])
        case 4:
            table = table.slice(0, int(rng.integers(table.num_rows + 1)))
        case 5:
            values = column.to_pylist()
            new = SCALARS[rng.integers(len(SCALARS))]
            values[rng.integers(len(values))] = new if type(new) is type(values[0]) else None
            table = table.set_column(position, name, pa.array(values, column.type))
        case _:
            for key, text in metadata.items():
                if text[:1] == b"{" and key != b"ARROW:schema":
                    metadata[key] = _json(text, rng)
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), out)
    return out.getvalue()


def _mat(data: bytes, rng) -> bytes:
    """The unpacked parts of a MATLAB file, packed again."""
    out, at = data[:128], 128
    parts = []
    while at < len(data):
        kind, size = struct.unpack("<II", data[at : at + 8])
        parts.append((kind, data[at + 8 : at + 8 + size]))
        at += 8 + size
    chosen = int(rng.integers(len(parts)))
    for number, (kind, body) in enumerate(parts):
        if number == chosen:
            if kind == 15:
                body = zlib.compress(_bytes(zlib.decompress(body), rng, ()), 1)
            else:
                body = _bytes(body, rng, ())
        out += struct.pack("<II", kind, len(body)) + body
    return out
