"""Names tell which convolutions became live taps."""

from keras_aspp.litert.names import find_live_taps, live_taps_scope


def test_live_taps_are_counted_by_convolution():
    square = live_taps_scope((3, 3), (12, 12), (33, 33))
    flat = live_taps_scope((1, 5), (1, 6), (8, 40))
    names = [
        f"model/aspp/atrous_1/{square}/Conv2D",
        f"model/aspp/atrous_1/{square}/Conv2D_1",
        # The same convolution in another layer, and twice in one layer.
        f"model/aspp/atrous_2/{square}/Pad",
        f"model/aspp/atrous_2/{square}_1/Pad",
        f"model/first/Relu;model/{flat}/Conv2D;model/{flat}/add",
        f"{flat}/Conv2D",
        "model/atrous_rate_3x3/Conv2D",
    ]
    assert find_live_taps(names) == {
        ((3, 3), (12, 12), (33, 33)): 3,
        ((1, 5), (1, 6), (8, 40)): 2,
    }
