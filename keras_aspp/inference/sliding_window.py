"""SlidingWindow: a picture seen piece by piece.

Shape legend: B batch, H x W pixels, K classes.
"""

import keras
import numpy as np


class SlidingWindow:
    """An engine that answers from overlapping pieces of a picture.

    Memory then grows with the picture's scores alone, and a model sees
    pictures of the size it was trained on. Where pieces overlap, their
    probabilities are averaged. A picture that fits is seen as a whole.

    Args:
        engine: with `scores(images)`, float logits (B, H, W, K).
        window: int > 0, height and width of the pieces, in pixels.
        overlap: float in [0, 1), share of a piece that the next one sees
            again. Defaults to 0.25.

    Raises:
        ValueError: an argument is not as above.
    """

    image_size = None

    def __init__(self, engine, window, overlap=0.25):
        if type(window) is not int or window < 1:
            raise ValueError(
                f"`window` must be an int > 0. Received: window={window!r}"
            )
        if not 0 <= overlap < 1:
            raise ValueError(
                f"`overlap` must be in [0, 1). Received: overlap={overlap}"
            )
        if window < engine.smallest_side:
            raise ValueError(
                f"`window` must be at least {engine.smallest_side}, the side "
                "of the smallest image that the model segments. "
                f"Received: window={window}"
            )
        self.engine, self.window, self.overlap = engine, window, overlap
        self.num_classes = engine.num_classes
        self.smallest_side = engine.smallest_side
        self.survives_fork = False

    def bytes_needed(self, count, height, width):
        """Of the largest piece; sum, piece and logarithm of the scores."""
        piece = (min(n, self.window) for n in (height, width))
        scores = count * height * width * (12 * self.num_classes + 8)
        return self.engine.bytes_needed(count, *piece) + scores

    def scores(self, images):
        """Logits; of several pieces, the logarithm of their mean."""
        rows, columns = (
            spans(n, self.window, self.overlap) for n in images.shape[1:3]
        )
        if len(rows) == len(columns) == 1:
            return self.engine.scores(images)
        total = np.zeros((*images.shape[:3], self.num_classes), "float32")
        count = np.zeros((*images.shape[1:3], 1), "float32")
        for row in rows:
            for column in columns:
                piece = self.engine.scores(images[:, row, column])
                total[:, row, column] += probabilities(piece)
                count[row, column] += 1
        return logarithm(total, count)

    def labels(self, images):
        """Labels, int (B, H, W)."""
        return self.scores(images).argmax(-1)


def spans(size, window, overlap):
    """Slices of one axis, the last flush with its end.

    Example:
    >>> spans(10, 4, 0.25)
    [slice(0, 4, None), slice(3, 7, None), slice(6, 10, None)]
    """
    if size <= window:
        return [slice(0, size)]
    step = max(int(window * (1 - overlap)), 1)
    starts = [*range(0, size - window, step), size - window]
    return [slice(start, start + window) for start in starts]


def probabilities(scores):
    """Softmax over classes, float32."""
    return keras.ops.convert_to_numpy(keras.ops.softmax(scores, axis=-1))


def logarithm(total, count):
    """Logarithm of a mean of probabilities; `total` is overwritten."""
    total /= count
    np.maximum(total, 1e-30, out=total)
    return np.log(total, out=total)
