"""Decoding rules on files of every kind made on the fly."""

import struct
import tracemalloc
import zlib
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin, features

from ssl_fast.data.io.audio import MediaError
from ssl_fast.data.io.images import Geometry, decode_image, fit_frame, frame_size, load_image, load_mask
from ssl_fast.data.transforms import POLICIES


def picture(height=24, width=40, seed=0):
    """Blocks of 8 x 8 pixels of one colour each: JPEG, too, gives them back."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return blocks.repeat(8, 0).repeat(8, 1)


@pytest.mark.parametrize("name, tolerance", [("plain.png", 0), ("with space.jpg", 4), ("größe 音.jpeg", 4)])
def test_rgb(tmp_path, name, tolerance):
    pixels = picture()
    options = {"quality": 100, "subsampling": 0} if tolerance else {}
    Image.fromarray(pixels).save(tmp_path / name, **options)
    got = decode_image(tmp_path / name)
    assert got.dtype == np.uint8 and got.shape == (24, 40, 3)
    np.testing.assert_allclose(got.astype(int), pixels.astype(int), atol=tolerance)


@pytest.mark.parametrize("kind", ["grey", "1 bit", "palette", "grey jpeg"])
def test_grey_and_palette(tmp_path, kind):
    pixels = picture()
    grey = pixels[..., 0]
    if kind == "palette":
        image, expected = Image.fromarray(pixels).quantize(64), None
        expected = np.asarray(image.convert("RGB"))
        assert image.mode == "P"
    elif kind == "1 bit":
        image = Image.fromarray(np.where(grey > 127, 255, 0).astype(np.uint8)).convert("1")
        expected = np.where(grey > 127, 255, 0)[..., None].repeat(3, 2)
    else:
        image, expected = Image.fromarray(grey), grey[..., None].repeat(3, 2)
    path = tmp_path / ("a.jpg" if "jpeg" in kind else "a.png")
    image.save(path, **({"quality": 100} if "jpeg" in kind else {}))
    np.testing.assert_allclose(decode_image(path).astype(int), expected.astype(int), atol=3 if "jpeg" in kind else 0)


def test_sixteen_bit_grey_is_divided_not_clipped(tmp_path):
    values = np.array([[0, 128, 129, 257, 25700, 32768, 65406, 65535]], np.uint16).repeat(4, 0)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode.startswith("I")
    expected = np.floor(values / 257 + 0.5)  # 0 0 1 1 100 128 254 255
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png"), expected[..., None].repeat(3, 2))


def test_cmyk(tmp_path):
    inks = np.random.default_rng(1).integers(0, 256, (3, 5, 4), np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(inks, "CMYK").save(tmp_path / "a.jpg", quality=100)
    assert Image.open(tmp_path / "a.jpg").mode == "CMYK"
    light = 255 - inks.astype(float)
    expected = light[..., :3] * light[..., 3:] / 255
    np.testing.assert_allclose(decode_image(tmp_path / "a.jpg"), expected, atol=4)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette with a transparent colour"])
def test_transparency_is_laid_over_white(tmp_path, kind):
    rng = np.random.default_rng(2)
    alpha = rng.integers(0, 256, (24, 40), np.uint8)
    colours = picture()
    if kind == "RGBA":
        image = Image.fromarray(np.dstack([colours, alpha]))
    elif kind == "LA":
        colours = colours[..., :1].repeat(3, 2)
        image = Image.fromarray(np.dstack([colours[..., 0], alpha]), "LA")
    else:
        index = rng.integers(0, 3, (24, 40), np.uint8)
        image = Image.fromarray(index, "P")
        image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
        colours, alpha = 255 * np.eye(3, dtype=np.uint8)[index], np.where(index == 1, 0, 255)
        image.info["transparency"] = 1
    image.save(tmp_path / "a.png")
    share = alpha[..., None] / 255
    np.testing.assert_allclose(decode_image(tmp_path / "a.png"), colours * share + 255 * (1 - share), atol=1.01)


@pytest.mark.parametrize(
    "orientation, turned",
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.transpose(1, 0, 2)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: np.rot90(x, 2).transpose(1, 0, 2)),
        (8, lambda x: np.rot90(x)),
    ],
)
def test_the_orientation_of_cameras_is_applied(tmp_path, orientation, turned):
    pixels = picture()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png"), turned(pixels))
    for kind in ("png", "jpg", "tiff", "webp"):
        Image.fromarray(pixels).save(tmp_path / f"b.{kind}", exif=exif)
        size = decode_image(tmp_path / f"b.{kind}").shape[1::-1]
        assert frame_size(tmp_path / f"b.{kind}") == size == turned(pixels).shape[1::-1]


def broken(folder, kind):
    path = folder / f"{kind}.jpg"
    if kind == "no bytes":
        path.touch()
    elif kind == "text":
        path.write_text("no picture")
    elif kind == "floats":
        path = folder / "floats.tiff"
        Image.fromarray(np.zeros((4, 4), np.float32)).save(path)
    elif kind == "large integers":
        path = folder / "large.tiff"
        Image.fromarray(np.full((4, 4), 70000, np.int32)).save(path)
    elif kind.startswith("cut"):
        path = folder / kind
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
    return path


@pytest.mark.parametrize(
    "kind, message",
    [
        ("missing", "no such file"),
        ("no bytes", r"empty file \(0 bytes\)"),
        ("text", r"cannot be read as an image \(Format not recognised\)"),
        ("cut.jpg", r"cannot be read as an image \(.*truncated"),
        ("cut.png", r"cannot be read as an image \("),
        ("floats", "expected integer pixels, got an image of floats"),
        ("large integers", "expected grey values of 16 bits, got 70000 to 70000"),
    ],
)
@pytest.mark.parametrize("load", [decode_image, lambda path: load_image(path, 8), lambda path: load_mask(path, 8)])
def test_broken_files_are_named(tmp_path, kind, message, load):
    path = broken(tmp_path, kind)
    with pytest.raises(MediaError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")


# ---------------------------------------------------------------------------------------------------------------------
# Damage that decoders pass over, and files that are not to be decoded


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, rows, *more, kind=(8, 2, 0)):
    """A PNG of these bytes of rows, each with its filter; kind: bits, type of colour, interlaced."""
    depth, colours, interlaced = kind
    head = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, interlaced)
    chunks = (chunk(b"IHDR", head), *more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


# bits and type of colour -> bytes of a row of 13 pixels without the filter
KINDS = {(1, 0): 2, (4, 0): 7, (8, 0): 13, (16, 0): 26, (8, 2): 39, (16, 2): 78, (2, 3): 4, (8, 4): 26, (8, 6): 52}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0, 0x55])
def test_a_png_without_all_of_its_rows_is_truncated(tmp_path, kind, value):
    row, palette = bytes([0] + [value] * KINDS[kind]), chunk(b"PLTE", bytes(range(12)))
    path, interlaced = tmp_path / "a.png", 0
    for rows, whole in ((100, True), (99, False), (10, False), (0, False)):
        path.write_bytes(png(13, 100, row * rows, palette, kind=(*kind, 0)))
        if whole:
            assert decode_image(path).shape == (100, 13, 3)
            continue
        with pytest.raises(MediaError, match=r"a.png: cannot be read as an image \(.*truncated"):
            decode_image(path)
    # interlaced: seven grids one after the other
    for x, y, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        bits = {2: 3, 4: 2, 6: 4}.get(kind[1], 1) * kind[0]
        interlaced += len(range(y, 100, dy)) * (1 + (len(range(x, 13, dx)) * bits + 7) // 8)
    for missing in (0, 1, interlaced // 2):
        path.write_bytes(png(13, 100, bytes(interlaced - missing), palette, kind=(*kind, 1)))
        if not missing:
            assert decode_image(path).shape == (100, 13, 3)
            continue
        with pytest.raises(MediaError, match="truncated"):
            decode_image(path)


@pytest.mark.parametrize("options", [{}, {"quality": 30}, {"subsampling": 0}, {"restart_marker_blocks": 3}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_whose_end_comes_too_early_is_truncated(tmp_path, options, mode):
    path, image = tmp_path / "a.jpg", Image.fromarray(picture(96, 64)).convert(mode)
    for flat in (False, True):
        if flat:  # as film with black bars
            image.paste(image.getpixel((0, 0)), (0, 60, 64, 96))
        image.save(path, **options)
        data = path.read_bytes()
        decode_image(path)
        for share in (0.7, 0.8, 0.9):
            path.write_bytes(data[: int(len(data) * share)] + b"\xff\xd9")
            with pytest.raises(MediaError, match=r"a.jpg: cannot be read as an image \((?i:truncated)"):
                decode_image(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("width, height", [(1, 40_000_000), (70_000, 1), (12_000, 9_000), (20_000, 20_000)])
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, width, height):
    path = tmp_path / "a.png"
    path.write_bytes(png(width, height, b""))
    assert len(path.read_bytes()) < 80
    tracemalloc.start()
    for read in (decode_image, frame_size):
        with pytest.raises(MediaError, match=r"a.png: expected .*at most 89 million pixels"):
            read(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_an_odd_tag_beside_the_orientation_does_no_harm(tmp_path):
    """A resolution that is a text; and EXIF that is none, which turns nothing."""
    pixels, path = picture(), tmp_path / "a.png"
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[274], tags.tagtype[282], tags[282] = 6, 2, "72"
    exif = b"Exif\0\0II*\0\x08\0\0\0" + tags.tobytes(8)
    Image.fromarray(pixels).save(path, exif=exif)
    np.testing.assert_array_equal(decode_image(path), np.rot90(pixels, -1))
    assert frame_size(path) == (24, 40)
    Image.fromarray(pixels).save(path, exif=b"Exif\0\0no TIFF at all")
    np.testing.assert_array_equal(decode_image(path), pixels)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("odd", [(0x010E, 3, 3), (0x010F, 2, 1 << 31), (0x0100, 12, 9)])
def test_orientation_behind_an_odd_tag(tmp_path, order, odd):
    """A tag whose values lie beyond the end, before the orientation."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    tags = struct.pack(f"{order}HHII", *odd, 0x7FFFFFFF) + struct.pack(f"{order}HHIHH", 0x0112, 3, 1, 6, 0)
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8)
    exif = b"Exif\0\0" + head + struct.pack(f"{order}H", 2) + tags + bytes(4)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png"), np.rot90(pixels, -1))
    assert frame_size(tmp_path / "a.png") == (24, 40)


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "webp", "tiff", "bmp", "avif", "dds", "jp2", "tga", "qoi"])
def test_no_damage_raises_anything_else(tmp_path, kind):
    if kind == "avif" and not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    whole, path, rng = tmp_path / f"whole.{kind}", tmp_path / f"a.{kind}", np.random.default_rng(0)
    Image.fromarray(picture(64, 64)).save(whole)
    data = whole.read_bytes()
    assert decode_image(whole).shape == (64, 64, 3)
    read = 0
    for _ in range(40):
        changed = bytearray(data)
        for at in rng.integers(0, min(len(data), 300), 3):
            changed[at] = rng.integers(256)
        path.write_bytes(changed if rng.integers(4) else changed[: rng.integers(1, len(data))])
        try:
            read += decode_image(path).ndim == 3
        except MediaError as error:
            assert str(error).startswith(f"{path}: ")
    assert read < 40


@pytest.mark.parametrize(
    "extra",
    [chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(2_000_000))), chunk(b"iCCP", b"\0"), chunk(b"zTXt", b"x\0\0none")],
)
def test_odd_chunks_of_a_png(tmp_path, extra):
    path = tmp_path / "a.png"
    path.write_bytes(png(4, 4, bytes(13 * 4), extra))
    try:
        assert decode_image(path).shape == (4, 4, 3)
    except MediaError as error:
        assert str(error).startswith(f"{path}: ")


def test_postscript_is_not_run(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(MediaError, match=r"a.jpg: cannot be read as an image \(EPS is a program"):
        decode_image(tmp_path / "a.jpg")


def test_heic(tmp_path):
    path = tmp_path / "a.heic"
    try:
        import pillow_heif
    except ImportError:
        path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
        words = r'a.heic: HEIC is read by pillow-heif, which cannot be imported .*: pip install "ssl_fast\[heif\]"'
        with pytest.raises(MediaError, match=words):
            decode_image(path)
        return
    pixels = picture(64, 64)
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(path, quality=100)
    assert np.abs(decode_image(path).astype(int) - pixels).mean() < 8 and frame_size(path) == (64, 64)


# ---------------------------------------------------------------------------------------------------------------------
# Resizing


def test_squash_keeps_fractions_of_the_frame(tmp_path):
    """A white box at (1/4 .. 1/2, 1/2 .. 1) of a wide frame covers the same fractions of the square."""
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[20:, 20:40] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    got = load_image(tmp_path / "a.png", 32)
    assert got.dtype == torch.uint8 and got.shape == (3, 32, 32) and got.is_contiguous()
    expected = np.zeros((3, 32, 32), bool)
    expected[:, 16:, 8:16] = True
    np.testing.assert_array_equal(got.numpy() > 127, expected)


def test_centre_crop_takes_the_middle_square(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 80, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    got = load_image(tmp_path / "a.png", 32, fit="crop")
    np.testing.assert_array_equal(got.numpy().transpose(1, 2, 0), pixels[:, 24:56])


def test_shrinking_averages(tmp_path):
    """Without antialiasing a checkerboard of single pixels would stay black and white."""
    board = np.indices((128, 128)).sum(0) % 2 * 255
    Image.fromarray(board.astype(np.uint8)).save(tmp_path / "a.png")
    inner = load_image(tmp_path / "a.png", 16)[:, 2:-2, 2:-2].float()
    assert (inner - 127.5).abs().max() < 5


def test_an_unknown_fit(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="fit: expected one of squash, crop, got 'pad'"):
        load_image(tmp_path / "a.png", 32, fit="pad")


@pytest.mark.parametrize("width, height", [(500, 300), (301, 451), (224, 224), (97, 96)])
def test_crop_is_the_middle_of_the_frame_with_a_shorter_side_of_the_size(width, height):
    """As torchvision's Resize(224, BICUBIC) and CenterCrop(224) are documented."""
    smooth = np.random.default_rng(0).uniform(0, 255, (height // 8 + 1, width // 8 + 1, 3)).astype(np.uint8)
    frame = np.asarray(Image.fromarray(smooth).resize((width, height), Image.Resampling.BICUBIC))
    shorter = min(width, height)
    wide, high = int(224 * width / shorter), int(224 * height / shorter)
    whole = np.asarray(Image.fromarray(frame).resize((wide, high), Image.Resampling.BICUBIC))
    left, top = round((wide - 224) / 2), round((high - 224) / 2)
    got = fit_frame(frame, 224, "crop").permute(1, 2, 0).numpy().astype(int)
    off = np.abs(got - whole[top : top + 224, left : left + 224])
    assert off.max() <= 2 and off.mean() < 0.2


def cubic(size, wanted):
    """(wanted, size) weights of bicubic interpolation with a = -.75, pixel centres at halves, edges repeated."""
    weights = np.zeros((wanted, size))
    for i in range(wanted):
        x = (i + 0.5) * size / wanted - 0.5
        for k in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
            d, a = abs(x - k), -0.75
            near = (a + 2) * d**3 - (a + 3) * d**2 + 1
            far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
            weights[i, min(max(k, 0), size - 1)] += near if d <= 1 else far
    return weights


def test_resampling_without_antialiasing_looks_at_four_pixels_a_side():
    frame = np.random.default_rng(0).integers(0, 256, (41, 90, 3), np.uint8)
    exact = np.einsum("yh,xw,hwc->cyx", cubic(41, 16), cubic(90, 16), frame)
    got = fit_frame(frame, 16, resampler="torch_aliased").numpy()
    assert exact.min() < -5 and exact.max() > 260  # it overshoots
    np.testing.assert_allclose(got, exact.clip(0, 255), atol=0.501)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P"])
def test_masks(tmp_path, mode):
    """Each target pixel is true where at least half of it is covered."""
    mask = np.random.default_rng(3).random((48, 64)) < np.linspace(0, 1, 64)
    Image.fromarray((mask * 255).astype(np.uint8)).convert(mode).save(tmp_path / "a.png")
    covered = mask.reshape(16, 3, 16, 4).mean((1, 3))
    expected, clear = covered >= 0.5, np.abs(covered - 0.5) > 0.01
    got = load_mask(tmp_path / "a.png", 16)
    assert got.dtype == bool and got.shape == (16, 16)
    np.testing.assert_array_equal(got[clear], expected[clear])


def test_a_mask_of_labels_would_vanish(tmp_path):
    Image.fromarray(np.eye(16, dtype=np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(MediaError, match="a.png: expected a mask with values 0 and 255, got a maximum of 1"):
        load_mask(tmp_path / "a.png", 16)
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "empty.png")
    assert not load_mask(tmp_path / "empty.png", 16).any()


def test_a_mask_that_is_transparent_is_no_object(tmp_path):
    """What is transparent is white in a frame."""
    mask = Image.new("RGBA", (16, 16), (0, 0, 0, 255))
    mask.save(tmp_path / "a.png")
    assert not load_mask(tmp_path / "a.png", 16).any()
    mask.putpixel((3, 3), (0, 0, 0, 0))
    mask.save(tmp_path / "a.png")
    with pytest.raises(MediaError, match="a.png: expected a mask that is black where nothing is, got transparent pix"):
        load_mask(tmp_path / "a.png", 16)


# ---------------------------------------------------------------------------------------------------------------------
# Geometry: where a rectangle that is painted into a frame ends up


def painted(box, width=160, height=120):
    """Black (height, width, 3) with a white box, fractions of the frame."""
    frame = np.zeros((height, width, 3), np.uint8)
    left, top, right, bottom = np.rint(np.multiply(box, (width, height) * 2)).astype(int)
    frame[top:bottom, left:right] = 255
    return frame


def outline(bright):
    """Of the true pixels of a square (size, size): left, top, right, bottom as fractions."""
    rows, columns = (np.flatnonzero(bright.any(axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / len(bright)


def geometries():
    generator, rng = torch.Generator().manual_seed(3), np.random.default_rng(3)
    for name in ("ez_vsl", "simclr", "moco_v2"):
        yield from (POLICIES[name].geometry(160, 120, 64, generator) for _ in range(40))
    for _ in range(20):
        (left, right), (top, bottom) = (np.sort(rng.choice(21, 2, replace=False)) / 20 for _ in range(2))
        yield Geometry((left, top, right, bottom), flip=bool(rng.integers(2)))
    yield Geometry()
    yield Geometry.centre(160, 120, 64)


def test_boxes_and_masks_go_where_the_image_goes():
    box, size, shown, clipped, flipped = (0.25, 0.3, 0.7, 0.75), 64, 0, 0, 0
    frame = painted(box)
    for geometry in geometries():
        boxes = geometry.boxes(np.array([box]))
        image = geometry.image(frame, size)
        assert image.shape == (3, size, size) and image.dtype == torch.uint8
        if not len(boxes) or (boxes[0, 2:] - boxes[0, :2]).min() < 3 / size:  # out of sight, or a sliver
            assert (image.numpy() > 127).any(0).sum() <= 3 * size
            continue
        bright, mask = image.numpy()[0] > 127, geometry.mask(frame[:, :, 0] > 127, size)
        for seen in (bright, mask, geometry.mask(frame[:, :, 0], size)):
            assert np.abs(outline(seen) - boxes[0]).max() <= 1 / size
        shown, clipped = shown + 1, clipped + (0 in boxes[0] or 1 in boxes[0])
        flipped += geometry.flip
    assert shown > 100 and clipped > 20 and 20 < flipped < shown - 20


def test_centre_crop_of_a_file_takes_its_boxes_along(tmp_path):
    for width, height in ((160, 120), (90, 150)):
        Image.fromarray(painted((0.3, 0.4, 0.6, 0.9), width, height)).save(tmp_path / "a.png")
        bright = load_image(tmp_path / "a.png", 60, fit="crop").numpy()[1] > 127
        moved = Geometry.centre(width, height, 60).boxes(np.array([[0.3, 0.4, 0.6, 0.9]]))
        assert np.abs(outline(bright) - moved[0]).max() <= 1 / 60


def test_pixels_of_a_crop_are_those_of_exact_fractions():
    """Whole pixels of the frame, whose edges often fall on whole pixels of the square, where rounding shows."""
    rng, whole = np.random.default_rng(5), 0
    for width, height in ((299, 224), (640, 480), (360, 640), (225, 224)):
        wide, high = (224 * side // min(width, height) for side in (width, height))
        shift = round((wide - 224) / 2), round((high - 224) / 2)
        for _ in range(200):
            (x0, x1), (y0, y1) = (np.sort(rng.choice(n + 1, 2, replace=False)).tolist() for n in (width, height))
            exact = [Fraction(x, width) * wide - shift[0] for x in (x0, x1)]
            exact += [Fraction(y, height) * high - shift[1] for y in (y0, y1)]
            left, right, top, bottom = (int(min(max(value, 0), 224)) for value in exact)
            found = Geometry.centre(width, height, 224).pixels(
                np.array([[x0 / width, y0 / height, x1 / width, y1 / height]]), 224
            )
            assert found.tolist() == ([[left, top, right, bottom]] if left < right and top < bottom else [])
            whole += sum(value.denominator == 1 for value in exact)
    assert whole > 500


def test_boxes_by_hand():
    boxes = np.array([[0.0, 0.0, 1.0, 1.0], [0.5, 0.25, 0.6, 0.5], [0.0, 0.0, 0.25, 1.0], [0.9, 0.9, 1.0, 1.0]])
    cut = (0.25, 0.0, 0.75, 0.5)  # of the third only the edge is left, of the fourth nothing
    np.testing.assert_allclose(Geometry(cut).boxes(boxes), [[0, 0, 1, 1], [0.5, 0.5, 0.7, 1]], atol=1e-12)
    np.testing.assert_allclose(Geometry(cut, True).boxes(boxes), [[0, 0, 1, 1], [0.3, 0.5, 0.5, 1]], atol=1e-12)
    assert Geometry(cut).boxes(np.zeros((0, 4))).shape == (0, 4)


@pytest.mark.parametrize("box", [(0.5, 0, 0.5, 1), (0, 0, 1, 1.01), (-0.1, 0, 1, 1), (0, 0.6, 1, 0.5)])
def test_bad_boxes_of_a_geometry(box):
    with pytest.raises(ValueError, match=r"box: expected 0 <= left < right <= 1 and .* got \(" + str(box[0])):
        Geometry(box)
