import numpy as np
import pytest
import tensorflow as tf
from helpers import np_resize

from keras_aspp.data.augment import FILL, Augment, AugmentConfig, padding_note

IGNORE = 11  # not 255, so that a constant would show
RNG = np.random.default_rng(3)


def config(**fields):
    """Nothing random but what is named."""
    nothing = {
        "scale": (1.0, 1.0),
        "flip": False,
        "brightness": 0.0,
        "contrast": 0.0,
        "saturation": 0.0,
        "hue": 0.0,
    }
    return AugmentConfig(**{**nothing, **fields})


def picture(height=37, width=53):
    """Noise with a mask of four classes."""
    image = RNG.integers(0, 256, (height, width, 3)).astype("uint8")
    return image, RNG.choice([0, 3, 5, 7], (height, width)).astype("int32")


def augment(image, labels, size, seed=0, **fields):
    return next(augment_often(image, labels, size, [seed], **fields))


def augment_often(image, labels, size, seeds, **fields):
    crop = Augment(config(**fields), size, IGNORE)
    for seed in seeds:
        crops = crop(image, labels, tf.constant([7, seed]))
        yield tuple(part.numpy() for part in crops)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": (0.0, 1.0)}, r"Received: scale=\(0.0, 1.0\)"),
        ({"scale": (2.0, 1.0)}, r"Received: scale=\(2.0, 1.0\)"),
        ({"brightness": 1.5}, r"in \[0, 1\]. Received: brightness=1.5"),
        ({"contrast": -0.1}, "Received: contrast=-0.1"),
        ({"saturation": 2.0}, "Received: saturation=2.0"),
        ({"hue": 0.6}, r"in \[0, 0.5\]. Received: hue=0.6"),
        ({"blur": 11.0}, r"in \[0, 10\]. Received: blur=11.0"),
    ],
)
def test_wrong_value_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**fields)


# Scaling and cropping.


def test_nothing_random_is_the_identity():
    image, labels = picture()
    ours, our_labels = augment(image, labels, (37, 53))
    assert ours.dtype == np.float32
    assert our_labels.dtype == np.int32
    np.testing.assert_allclose(ours, image, atol=1e-3)
    np.testing.assert_array_equal(our_labels, labels)


def np_nearest(labels, scale):
    """Half-pixel centres: output i shows the pixel that holds its centre."""
    rows, columns = (
        np.floor((np.arange(round(n * scale)) + 0.5) / scale).astype(int)
        for n in labels.shape
    )
    return labels[rows][:, columns]


# No pixel of these has its centre between two of the picture.
@pytest.mark.parametrize("scale", [0.4, 0.8, 1.6, 2.0])
def test_scaled_mask_is_the_nearest_pixel(scale):
    image, labels = picture(40, 60)
    expected = np_nearest(labels, scale)
    _, ours = augment(image, labels, expected.shape, scale=(scale, scale))
    np.testing.assert_array_equal(ours, expected)
    assert len(np.unique(expected)) == 4


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.25, 2.0])
def test_scaled_picture_is_bilinear(scale):
    image, labels = picture(24, 36)
    size = (int(24 * scale), int(36 * scale))
    ours, _ = augment(image, labels, size, scale=(scale, scale))
    expected = np_resize(image[None].astype("float32"), size)[0]
    # The outermost pixel of an enlarged picture is mixed with the fill.
    rim = slice(1, -1) if scale > 1 else slice(None)
    np.testing.assert_allclose(ours[rim, rim], expected[rim, rim], atol=1e-2)
    assert expected.std() > 20


@pytest.mark.parametrize("size", [(37, 53), (90, 61)])
def test_pictures_of_bytes_are_sampled_as_those_of_floats(size, monkeypatch):
    # The limit of the cast separates the two sizes.
    sampled = []
    sample = tf.image.crop_and_resize
    monkeypatch.setattr(
        tf.image,
        "crop_and_resize",
        lambda x, *args, **kwargs: (
            sampled.append(x.dtype.name) or sample(x, *args, **kwargs)
        ),
    )
    image, labels = picture(*size)
    ours, reference = (
        augment(part, labels, (29, 31), scale=(0.4, 1.6), flip=True)
        for part in (image, image.astype("float32"))
    )
    np.testing.assert_array_equal(ours[0], reference[0])
    np.testing.assert_array_equal(ours[1], reference[1])
    kernel = "float32" if size == (37, 53) else "uint8"
    assert sampled == [kernel, "uint8", "float32", "uint8"]
    assert ours[0].std() > 20


def test_colors_are_those_of_a_product_and_a_sum_clipped():
    image, labels = picture(29, 31)
    crop = Augment(AugmentConfig(), (29, 31), IGNORE)
    draw = tf.constant([0.8, 0.9, -0.7, 0.6])
    plain, clipped = (
        crop._recolor(tf.cast(image, "float32"), draw, clip).numpy()
        for clip in (False, True)
    )
    np.testing.assert_array_equal(clipped, np.clip(plain, 0, 255))
    assert plain.min() < 0 and plain.max() > 255
    # The same affine map for every pixel.
    pixels = np.insert(image.reshape(-1, 3), 3, 1, -1).astype("float64")
    matrix = np.linalg.lstsq(pixels, plain.reshape(-1, 3), rcond=None)[0]
    np.testing.assert_allclose(plain.reshape(-1, 3), pixels @ matrix, atol=1e-3)


def test_brightness_is_a_share_of_white():
    crop = Augment(AugmentConfig(brightness=0.2), (29, 31), IGNORE)
    draw = tf.constant([-0.5, 0.0, 0.0, 0.0])
    image = tf.fill((29, 31, 3), 100.0)
    changed = crop._recolor(image, draw, clip=False).numpy()
    np.testing.assert_allclose(changed, 100 - 0.5 * 0.2 * 255, atol=1e-3)


def test_small_picture_is_centred_and_padded_with_ignore():
    image, labels = picture(9, 14)
    ours, our_labels = augment(image, labels, (15, 32))
    expected = np.full((15, 32), IGNORE)
    expected[3:12, 9:23] = labels
    np.testing.assert_array_equal(our_labels, expected)
    np.testing.assert_allclose(ours[3:12, 9:23], image, atol=1e-3)
    outside = ours[our_labels == IGNORE]
    assert outside.size > 0
    np.testing.assert_allclose(outside, FILL, atol=1e-3)


def test_crop_lies_anywhere_in_the_picture():
    y, x = np.mgrid[:40, :60]
    image = np.stack([y, x, x], axis=-1).astype("uint8")
    crop = Augment(config(), (8, 8), IGNORE)
    corners = np.array(
        [
            crop(image, y.astype("int32"), tf.constant([0, i]))[0][0, 0, :2]
            for i in range(200)
        ]
    )
    assert corners.min() < 1.5
    np.testing.assert_array_less([30, 50], corners.max(axis=0))
    np.testing.assert_allclose(corners.mean(axis=0), [16, 26], atol=3)
    assert np.all(corners <= [32, 52])
    # Both axes are drawn, not one number for both.
    assert abs(np.corrcoef(corners.T)[0, 1]) < 0.3


def test_scale_reaches_both_ends():
    # A step of grey levels per pixel of the picture tells the scale.
    image = np.repeat(np.arange(100, dtype="uint8")[None], 80, axis=0)
    image = np.repeat(image[..., None], 3, axis=-1)
    labels = np.zeros((80, 100), "int32")
    crop = Augment(config(scale=(0.5, 2.0)), (32, 32), IGNORE)
    scales = []
    for i in range(100):
        out = crop(image, labels, tf.constant([0, i]))[0].numpy()
        scales.append(1 / np.median(np.diff(out[16, :, 0])))
    assert 0.49 < min(scales) < 0.6
    assert 1.85 < max(scales) < 2.01


@pytest.mark.parametrize("seed", range(12))
def test_mask_never_has_a_value_of_its_own(seed):
    image, labels = picture()
    # Classes far apart: an average of two would be a third value.
    labels = np.where(labels > 3, 200, labels)
    settings = AugmentConfig(scale=(0.3, 3.0), blur=1.0)
    crop = Augment(settings, (41, 29), IGNORE)
    ours, our_labels = crop(image, labels, tf.constant([1, seed]))
    assert our_labels.dtype == tf.int32
    assert ours.dtype == tf.float32
    assert our_labels.shape == (41, 29)
    assert set(np.unique(our_labels)) <= {0, 3, 200, IGNORE}
    assert 0 <= ours.numpy().min() and ours.numpy().max() <= 255


def centroid(weights):
    y, x = np.indices(weights.shape)
    return np.array([(weights * y).sum(), (weights * x).sum()]) / weights.sum()


@pytest.mark.parametrize("size", [(176, 240), (48, 56)], ids=["all", "part"])
def test_picture_and_mask_stay_aligned(size):
    """A disc drawn in both has its edge at one place in both."""
    y, x = np.mgrid[:80, :110]
    disc = np.hypot(y - 41.3, x - 52.6) < 17
    image = np.repeat(disc[..., None] * 255, 3, axis=-1).astype("uint8")
    crop = Augment(config(scale=(0.5, 2.0), flip=True), size, IGNORE)
    shifts, edges = [], []
    for seed in range(40):
        ours, labels = crop(image, disc.astype("int32"), tf.constant([2, seed]))
        labels, bright = labels.numpy(), ours.numpy()[..., 0] / 255
        inside = labels != IGNORE
        wrong = ((bright > 0.5) != (labels == 1)) & inside
        edge = (np.abs(np.diff(labels == 1, axis=0)) & inside[1:]).sum()
        edges.append((wrong.sum(), edge))
        if size[0] > 160:
            bright = np.where(inside, bright, 0)
            shifts.append(centroid(bright) - centroid(labels == 1))
    wrong, edge = np.sum(edges, axis=0)
    assert edge > 500
    # A shift of one pixel would make as many wrong as the edge is long.
    assert wrong < 0.2 * edge, wrong / edge
    if shifts:
        # Nearest may round by half a pixel of the source.
        assert np.abs(shifts).max() < 0.5
        assert np.abs(np.mean(shifts, axis=0)).max() < 0.15


def test_flip_turns_both_alike_and_half_of_the_time():
    image, labels = picture()
    flipped = 0
    crops = augment_often(image, labels, (37, 53), range(60), flip=True)
    for ours, our_labels in crops:
        turned = not np.allclose(ours, image, atol=1e-3)
        step = -1 if turned else 1
        np.testing.assert_allclose(ours, image[:, ::step], atol=1e-3)
        np.testing.assert_array_equal(our_labels, labels[:, ::step])
        flipped += turned
    assert 18 < flipped < 42


def test_flip_keeps_large_class_ids():
    labels = np.arange(12, dtype="int32").reshape(3, 4) + 243
    image = np.zeros((3, 4, 3), "uint8")
    crops = augment_often(image, labels, (3, 4), range(8), flip=True)
    assert any(np.array_equal(c[1], labels[:, ::-1]) for c in crops)


# Colours.


def test_colors_leave_the_mask_alone_and_change_the_picture():
    image, labels = picture()
    for fields in (
        {"brightness": 0.3},
        {"contrast": 0.5},
        {"saturation": 0.9},
        {"hue": 0.3},
        {"blur": 2.0},
    ):
        ours, our_labels = augment(image, labels, (37, 53), 5, **fields)
        np.testing.assert_array_equal(our_labels, labels)
        assert np.abs(ours - image).mean() > 1, fields


def test_brightness_is_a_shift_of_bounded_size():
    image, labels = np.full((6, 8, 3), 128, "uint8"), np.zeros((6, 8), "int32")
    shifts = []
    for ours, _ in augment_often(
        image, labels, (6, 8), range(40), brightness=0.2
    ):
        assert ours.std() < 1e-3
        shifts.append(ours.mean() - 128)
    assert np.abs(shifts).max() <= 0.2 * 255 + 1e-3
    assert min(shifts) < -30 and max(shifts) > 30


def test_contrast_stretches_about_the_mean():
    image, labels = picture()
    image = image // 2 + 60  # nothing is clipped
    ours, _ = augment(image, labels, (37, 53), 3, contrast=0.4)
    mean = image.mean(axis=(0, 1))
    factors = ((ours - mean) / (image - mean)).reshape(-1, 3)
    factor = np.median(factors)
    assert 0.6 <= factor <= 1.4 and abs(factor - 1) > 0.05
    np.testing.assert_allclose(ours, mean + (image - mean) * factor, atol=0.05)


@pytest.mark.parametrize("fields", [{"saturation": 1.0}, {"hue": 0.5}])
def test_grey_has_neither_saturation_nor_hue(fields):
    grey = np.repeat(RNG.integers(0, 256, (9, 7, 1)), 3, -1).astype("uint8")
    ours, _ = augment(grey, np.zeros((9, 7), "int32"), (9, 7), 3, **fields)
    np.testing.assert_allclose(ours, grey, atol=0.01)


def luma_and_color(image):
    """Luma, and the colour axes I and Q as one complex number."""
    red, green, blue = np.moveaxis(np.asarray(image, "float64"), -1, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    i = 0.596 * red - 0.274 * green - 0.322 * blue
    q = 0.211 * red - 0.523 * green + 0.312 * blue
    return luma, i + 1j * q


def test_hue_turns_and_saturation_stretches_at_the_same_luma():
    image = RNG.integers(100, 150, (6, 8, 3)).astype("uint8")  # none is clipped
    labels = np.zeros((6, 8), "int32")
    luma, color = luma_and_color(image)
    turns, stretches = [], []
    for seed in range(30):
        ours, _ = augment(image, labels, (6, 8), seed, hue=0.25, saturation=0.5)
        our_luma, our_color = luma_and_color(ours)
        np.testing.assert_allclose(our_luma, luma, atol=0.3)
        change = np.vdot(color, our_color) / np.vdot(color, color)
        np.testing.assert_allclose(our_color, change * color, atol=0.3)
        turns.append(np.angle(change) / (2 * np.pi))
        stretches.append(np.abs(change))
    assert -0.251 < min(turns) < -0.15 and 0.15 < max(turns) < 0.251
    assert 0.49 < min(stretches) < 0.7 and 1.3 < max(stretches) < 1.51


def test_blur_changes_no_other_draw():
    image, labels = picture()
    for seed in range(4):
        crops = [
            Augment(AugmentConfig(blur=blur), (32, 32), IGNORE)(
                image, labels, tf.constant([0, seed])
            )
            for blur in (0.0, 1.0)
        ]
        np.testing.assert_array_equal(crops[0][1], crops[1][1])
    again = Augment(AugmentConfig(blur=1.0), (32, 32), IGNORE)(
        image, labels, tf.constant([0, seed])
    )
    np.testing.assert_array_equal(crops[1][0], again[0])
    assert np.any(crops[0][0] != crops[1][0])


@pytest.mark.parametrize(
    ("sizes", "crop", "scale", "better"),
    [
        # 140 x 1.25 = 175, so 192; (320 / 192)**2 = 2.78
        ({(140, 140): 9, (900, 900): 2}, (320, 320), (0.5, 2.0), "[192,192]"),
        ({(140, 400): 1}, (320, 320), (0.5, 2.0), "[192,320]"),
        ({(200, 200): 1}, (320, 320), (1.0, 1.0), "[224,224]"),
        ({(240, 300): 1}, (320, 320), (1.0, 1.0), None),
        ({(900, 900): 1}, (320, 320), (0.5, 2.0), None),
        ({}, (320, 320), (0.5, 2.0), None),
    ],
)
def test_crops_that_are_mostly_padding_are_noted(sizes, crop, scale, better):
    note = padding_note(sizes, crop, scale)
    assert (note is None) == (better is None)
    if better:
        assert f"`--data.crop_size {better}`" in note
    if better == "[192,192]":
        assert "about 2.8 times as long as with 192x192" in note


# Rotation, vertical flips, erasing, crops around rare classes.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rotation": 181.0}, r"in \[0, 180\]. Received: rotation=181.0"),
        ({"cutmix": 1.5}, r"in \[0, 1\]. Received: cutmix=1.5"),
        ({"rare_class_crops": -1.0}, "Received: rare_class_crops=-1.0"),
    ],
)
def test_wrong_geometry_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**fields)


def test_vertical_flip_turns_half_of_the_crops_with_their_masks():
    image, labels = picture()
    flipped = 0
    for ours, mask in augment_often(
        image, labels, labels.shape, range(40), vertical_flip=True
    ):
        turn = slice(None, None, -1 if (mask != labels).any() else 1)
        flipped += turn.step == -1
        np.testing.assert_array_equal(mask, labels[turn])
        np.testing.assert_allclose(ours, image[turn], atol=1e-3)
    assert 10 < flipped < 30


def test_rotation_moves_image_and_mask_alike_about_the_center():
    labels = np.zeros((60, 60), "int32")
    labels[6:16, 26:34] = 5
    image = np.repeat(labels[..., None] * 40, 3, -1).astype("uint8")
    angles = []
    for ours, mask in augment_often(
        image, labels, (60, 60), range(12), rotation=90.0
    ):
        row, column = np.argwhere(mask == 5).mean(0) - 29.5
        of_image = np.argwhere(ours[..., 0] > 160).mean(0) - 29.5
        np.testing.assert_allclose(of_image, (row, column), atol=0.5)
        # The middle of the block is 19 pixels above that of the image.
        assert abs(np.hypot(row, column) - 19) < 0.5
        angles.append(np.degrees(np.arctan2(column, -row)))
        # Uncovered corners are gray and ignored; nothing else is.
        rows, columns = np.indices((60, 60)) - 29.5
        turn = np.radians(angles[-1])
        across = columns * np.cos(turn) + rows * np.sin(turn)
        down = rows * np.cos(turn) - columns * np.sin(turn)
        outside = np.maximum(abs(across), abs(down))
        assert (mask[outside > 31.5] == IGNORE).all()
        assert (mask[outside < 28.5] != IGNORE).all()
        np.testing.assert_allclose(ours[outside > 31.5], FILL)
    assert max(angles) < 91
    assert min(angles) > -91
    assert np.ptp(angles) > 60


def test_erased_rectangle_is_gray_and_ignored():
    image, labels = picture(48, 64)
    for ours, mask in augment_often(
        image, labels, labels.shape, range(8), erasing=1.0
    ):
        rows, columns = np.nonzero(mask == IGNORE)
        box = np.s_[
            rows.min() : rows.max() + 1, columns.min() : columns.max() + 1
        ]
        assert (mask[box] == IGNORE).all()
        np.testing.assert_allclose(ours[box], FILL)
        kept = mask != IGNORE
        np.testing.assert_array_equal(mask[kept], labels[kept])
        np.testing.assert_allclose(ours[kept], image[kept], atol=1e-3)
        assert 4 <= rows.max() - rows.min() + 1 <= 25


@pytest.mark.parametrize(
    ("probability", "low", "high"), [(0, 0, 12), (1, 40, 80)]
)
def test_crops_find_a_rare_class(probability, low, high):
    labels = np.zeros((90, 120), "int32")
    labels[70, 30] = 3
    labels[:9] = IGNORE
    image = np.repeat(60 * (labels == 3)[..., None], 3, -1).astype("uint8")
    found = 0
    for ours, mask in augment_often(
        image,
        labels,
        (12, 16),
        range(100),
        rare_class_crops=float(probability),
        flip=True,
    ):
        found += (mask == 3).any()
        # The mask stays with its image: a label's own pixel has a share of
        # 1/4 or more of what a bilinear sample shows.
        assert (ours[mask == 3] > 14.9).all()
        assert (ours[mask == 0] < 45.1).all()
    # Of the two classes, each is drawn for half of the crops.
    assert low <= found <= high


def test_crops_of_an_ignored_or_small_image_stay_where_they_are():
    image, labels = picture(9, 11)
    for labels_of in (labels, np.full_like(labels, IGNORE)):
        plain = augment(image, labels_of, (20, 20))
        rare = augment(image, labels_of, (20, 20), rare_class_crops=1.0)
        for one, other in zip(plain, rare, strict=True):
            np.testing.assert_array_equal(one, other)


def test_switched_on_they_change_no_other_draw():
    gray, labels = np.full((40, 40, 3), FILL, "uint8"), np.zeros((40, 40), int)
    colors = {"brightness": 0.3, "saturation": 0.5}
    more = {
        "rotation": 30.0,
        "vertical_flip": True,
        "rare_class_crops": 0.5,
        "cutmix": 0.5,
    }
    plain, _ = augment(gray, labels, (20, 20), 4, **colors)
    moved, _ = augment(gray, labels, (20, 20), 4, **colors, **more)
    assert abs(plain - FILL).max() > 1
    np.testing.assert_allclose(moved, plain, atol=1e-3)


# Mixing of batches.


def mixed(count=6, **fields):
    """A batch whose images show their number and their labels."""
    labels = RNG.choice([0, 3, 5, 7, IGNORE], (count, 14, 18)).astype("int32")
    number = np.broadcast_to(np.arange(count)[:, None, None], labels.shape)
    images = np.stack([number, labels], -1).astype("float32")
    seeds = tf.constant([[2, i] for i in range(count)], "int64")
    crop = Augment(config(**fields), (14, 18), IGNORE)
    ours, masks = map(np.asarray, crop.mix(images, labels, seeds))
    np.testing.assert_array_equal(ours[..., 1], masks)
    pasted = ours[..., 0] != number
    following = np.roll(labels, -1, 0)
    np.testing.assert_array_equal(
        ours[..., 0][pasted], np.roll(number, -1, 0)[pasted]
    )
    np.testing.assert_array_equal(masks, np.where(pasted, following, labels))
    return pasted, following


def test_without_mixing_a_batch_is_as_it_was():
    assert not mixed()[0].any()


def test_cutmix_pastes_a_rectangle_of_the_next_image():
    pasted, _ = mixed(60, cutmix=0.75)
    shares = []
    for one in pasted:
        shares.append(one.mean())
        if one.any():
            rows, columns = np.nonzero(one)
            box = one[
                rows.min() : rows.max() + 1, columns.min() : columns.max() + 1
            ]
            assert box.all()
    shares = np.array(shares)
    assert 30 < (shares > 0).sum() < 56
    # Squares of a uniform share, about uniform centers, cut at the rim.
    assert 0.15 < shares[shares > 0].mean() < 0.5


def test_classmix_pastes_half_of_the_classes_of_the_next_image():
    pasted, following = mixed(40, classmix=1.0)
    chosen = set()
    for one, labels in zip(pasted, following, strict=True):
        classes = {*labels[one].tolist()}
        assert len(classes) == 2  # of four
        assert IGNORE not in classes
        np.testing.assert_array_equal(one, np.isin(labels, [*classes]))
        chosen.add(frozenset(classes))
    assert len(chosen) == 6  # all pairs


def test_classmix_of_an_ignored_image_pastes_nothing():
    crop = Augment(config(classmix=1.0), (4, 4), IGNORE)
    labels = np.stack([np.zeros((4, 4)), np.full((4, 4), IGNORE)])
    images = RNG.random((2, 4, 4, 3)).astype("float32")
    seeds = tf.constant([[0, 0], [0, 1]], "int64")
    ours, masks = crop.mix(images, labels.astype("int32"), seeds)
    np.testing.assert_array_equal(ours[0], images[0])
    np.testing.assert_array_equal(masks.numpy()[1], np.zeros((4, 4)))
