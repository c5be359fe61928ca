"""Whether a media file is whole: what its head tells of its length against its bytes, where a decoder does not compare.

libsndfile and FFmpeg take what they find, and some of what they tell is a guess. The checks raise MediaError, which
names the file.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .media import MediaError

# Lengths in the log of libsndfile: of the whole file (w64: with its own eight bytes), and of the samples in it
_FILE = re.compile(r"^ *(RIFF|FORM|riff|Riff size) : (\d+)", re.M)
_SAMPLES = re.compile(r"^ *(?:data|SSND|BODY|Data Size) *: (\d+) \(should be (\d+)\)", re.M)
_AU = re.compile(r"^ *Data Offset : (\d+)\s+Data Size +: (\d+)", re.M)
_BOXES = {b"ftyp", b"moov", b"mdat", b"moof", b"wide", b"free", b"skip"}  # with which an mp4 or mov may begin
_UNKNOWN = 0x7FFF0000  # bytes; programs that write to a pipe leave this or more where a length of 32 bits should stand
_XING_FLAGS = {bytes((0, 0, 0, flags)) for flags in range(1, 16)}
_TURNED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))  # bytes with their bits in the other order
_TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN")  # of titles and the like, behind the sound

# kbit/s of an MPEG frame, by version 1 and layer, and of versions 2 and 2.5; indices 1 to 14
_KBPS = {
    (True, 1): range(32, 449, 32),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def check_log(path: Path, log: str) -> None:
    """wav, rf64, w64, aiff, au, svx and voc: what libsndfile wrote to its log (`extra_info`) as it opened the file."""
    size, log = path.stat().st_size, log.partition("\n")[2]  # its first line has the name of the file
    told = [int(length) + 8 * (name != "riff") for name, length in _FILE.findall(log)]
    told += [int(offset) + int(length) for offset, length in _AU.findall(log)]
    length = told[0] if told else size
    unknown = _UNKNOWN if "RIFF : " in log or "FORM : " in log else 1 << 62
    padding = 0 if "\nriff : " in log else 1  # which an odd chunk may lack
    if size + padding < length < unknown:
        raise MediaError(f"{path}: truncated, its header tells of {length} bytes, the file has {size}")
    for samples, found in _SAMPLES.findall(log):
        if int(found) < int(samples) < _UNKNOWN:
            raise MediaError(f"{path}: truncated, its header tells of {samples} bytes of samples, {found} are there")
    if "\nSeems to be a truncated file" in log:  # voc
        raise MediaError(f"{path}: truncated")
    if "\nSeems to be a multi-segment file" in log:  # voc, also where other bytes follow the sound
        raise MediaError(f"{path}: damaged, or of several sounds")
    if 8 < length < size:
        with open(path, "rb") as file:
            file.seek(length)
            _check_rest(path, file.read(), length)
    elif stop := re.search(r"^\*\*\* (.* Exiting parser|.* not match .*|.* not equal .*)", log, re.M):
        raise MediaError(f"{path}: damaged ({stop[1]})")


def check_ogg(path: Path) -> None:
    """ogg: its pages are complete, of one stream, follow each other, have their checksums, and the last one ends it."""
    data = path.read_bytes()
    at, number, head = 0, 0, b""
    while data[at : at + 4] == b"OggS":
        head = data[at : at + 27]
        end = at + 27 + sum(data[at + 26 : at + 27]) + sum(data[at + 27 :][: head[-1]])
        if len(head) < 27 or end > len(data):
            raise MediaError(f"{path}: truncated, its last page is incomplete")
        if head[14:18] != data[14:18]:
            raise MediaError(f"{path}: expected one stream, got several")
        page = data[at : at + 22] + bytes(4) + data[at + 26 : end]
        # zlib's polynomial, but with the bits of bytes and sum in the other order
        checksum = (zlib.crc32(page.translate(_TURNED), 0xFFFFFFFF) ^ 0xFFFFFFFF).to_bytes(4, "big")
        if int.from_bytes(head[18:22], "little") != number or checksum.translate(_TURNED) != head[22:26]:
            raise MediaError(f"{path}: damaged, page {number} is missing or has not its checksum")
        at, number = end, number + 1
    if not head[5] & 4:
        raise MediaError(f"{path}: truncated, its last page does not end the stream")
    _check_rest(path, data[at:], at)


def check_flac(path: Path, sound: np.ndarray, subtype: str) -> None:
    """flac: all samples, (n, channels) integers of full scale, have the MD5 sum of the header, if that has one."""
    with open(path, "rb") as file:
        file.seek(_tag_bytes(file.read(10)))
        told = file.read(42)[26:]  # behind "fLaC", four bytes and 18 of other values
    width = {"PCM_S8": 1, "PCM_16": 2, "PCM_24": 3}[subtype]
    values = sound.view(np.uint8).reshape(-1, sound.itemsize)[:, -width:]
    if any(told) and hashlib.md5(values.tobytes(), usedforsecurity=False).digest() != told:
        raise MediaError(f"{path}: damaged: its samples do not have the checksum that its header tells")


def mp3_stream(path: Path) -> tuple[bytes, int] | None:
    """The frames of an mp3 file, and the number of their samples; None where a Xing header tells libsndfile that.

    Else libsndfile guesses the number from the size of the file and of the first frame, and reads no further. So an
    empty tag stands before the frames, so large that the guess is high enough.
    """
    data = path.read_bytes()
    start = 0
    while length := _tag_bytes(data[start : start + 10]):
        start += length
    start += len(data[start:]) - len(data[start:].lstrip(b"\0"))
    at, frames, samples, first = start, 0, 0, None
    while frame := _mpeg_frame(data[at : at + 4]):
        length, count, form = frame
        if at + length > len(data):
            raise MediaError(f"{path}: truncated, its last frame has {len(data) - at} of {length} bytes")
        if first is None:
            first = frame
        elif form != first[2]:
            was, now = ("layer {2}, {0} Hz, {1} channels".format(*one) for one in (first[2], form))
            raise MediaError(f"{path}: expected frames of one kind, got {was} and, at byte {at}, {now}")
        at, frames, samples = at + length, frames + 1, samples + count
    _check_rest(path, data[at:], at)
    if first is None:
        raise MediaError(f"{path}: expected frames of MPEG audio, got none at byte {start}")
    length, count, (_, channels, _) = first
    head, told = data[start : start + length], None
    begin = 4 if head[1] & 1 else 6  # a checksum
    side = begin + ((32 if channels == 2 else 17) if count == 1152 else (17 if channels == 2 else 9))
    xing, vbri = head[side : side + 4] in (b"Xing", b"Info"), head[36:40] == b"VBRI"
    # It stands in a frame of silence, before a number below 16; else libsndfile would take it for sound, and guess.
    if xing != (not any(head[begin:side]) and head[side + 4 : side + 8] in _XING_FLAGS):
        raise MediaError(f"{path}: damaged Xing header")
    if xing and head[side + 7] & 1:
        told = int.from_bytes(head[side + 8 : side + 12], "big")
    elif vbri:
        told = int.from_bytes(head[50:54], "big")
        start += length  # libsndfile would hear silence
    if xing or vbri:
        frames, samples = frames - 1, samples - count
    if told is not None and told != frames:
        cut = "truncated, " if told > frames else ""
        raise MediaError(f"{path}: {cut}its header tells of {told} frames, {frames} are there")
    if xing and told is not None:
        return None
    padding = min(max(4096, frames * length), (1 << 28) - 1)
    tag = b"ID3\4\0\0" + bytes(padding >> shift & 127 for shift in (21, 14, 7, 0)) + bytes(padding)
    return tag + data[start:at], samples


def check_container(path: Path) -> None:
    """avi, mkv, webm: the file is not shorter than its first bytes tell. mp4, mov and their like: nor than the boxes of
    its samples. ts: it does not end within a packet, all of which are of one size."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(4096)
        media = _end_of_media(file) if head[4:8] in _BOXES else 0
    told, segment = 0, head.find(b"\x18\x53\x80\x67")
    if head[:4] == b"RIFF":
        told = 8 + int.from_bytes(head[4:8], "little")
    elif head[:4] == b"\x1a\x45\xdf\xa3" and segment > 0:
        width = 9 - head[segment + 4].bit_length()  # leading zeros are the number of bytes that follow
        length = int.from_bytes(head[segment + 4 :][:width], "big") & ~(1 << 7 * width)
        if length + 1 < 1 << 7 * width:  # ones alone: unknown
            told = segment + 4 + width + length
    told = max(told, media)
    if size < told and not (head[:4] == b"RIFF" and told >= _UNKNOWN):
        raise MediaError(f"{path}: truncated, its head tells of {told} bytes, the file has {size}")
    for width, at in ((188, 0), (192, 4)):
        if set(head[at::width]) == {ord("G")} and size % width:
            raise MediaError(f"{path}: truncated, the last of its packets of {width} bytes has {size % width}")


def _end_of_media(file: BinaryIO) -> int:
    """The end of the last box of samples (mdat) of an mp4, as it tells its length."""
    at, end = 0, 0
    while True:
        file.seek(at)
        box = file.read(16)
        length = int.from_bytes(box[:4], "big")
        length = int.from_bytes(box[8:], "big") if length == 1 else length
        if len(box) < 8 or length < 8:  # 0: up to the end of the file
            return end
        at += length
        end = at if box[4:8] == b"mdat" else end


def _check_rest(path: Path, rest: bytes, at: int) -> None:
    """MediaError where the bytes behind the sound are neither zeros nor a tag."""
    rest = rest.lstrip(b"\0")
    if rest and not rest.startswith(_TAGS):
        raise MediaError(f"{path}: damaged, or of several sounds: {len(rest)} unknown bytes follow byte {at}")


def _tag_bytes(head: bytes) -> int:
    """Size of an ID3v2 tag, of its ten first bytes; 0 for anything else."""
    if len(head) < 10 or head[:3] != b"ID3":
        return 0
    return 10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0))) + (10 if head[5] & 16 else 0)


def _mpeg_frame(head: bytes) -> tuple[int, int, tuple[int, int, int]] | None:
    """Bytes and samples of a frame of MPEG audio, and its rate, channels and layer, by its four first bytes; None for
    anything else, and for a free bit rate."""
    if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)  # versions: 3 is MPEG 1, 2 is 2, 0 is 2.5
    kbps, hertz = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or kbps in (0, 15) or hertz == 3:
        return None
    rate = (44100, 48000, 32000)[hertz] >> {3: 0, 2: 1, 0: 2}[version]
    samples = 384 if layer == 1 else 1152 if layer == 2 or version == 3 else 576
    slot = 4 if layer == 1 else 1
    slots = samples // 8 * 1000 * _KBPS[version == 3, layer][kbps - 1] // slot // rate + (head[2] >> 1 & 1)
    return slots * slot, samples, (rate, 1 if head[3] >> 6 == 3 else 2, layer)
