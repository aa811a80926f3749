"""Ingredients of a training recipe, for `training.ablation`."""

_SMOOTH = ("--train.loss.label_smoothing", "0.1")
# Name -> `(description, *options)` of an ingredient beside smooth labels.
_INGREDIENTS = {
    "light": (
        "twice the change of light",
        *("--data.augment.brightness", "0.25"),
        *("--data.augment.contrast", "0.4"),
        *("--data.augment.saturation", "0.4"),
        *("--data.augment.hue", "0.05"),
    ),
    "auxiliary": ("auxiliary head", "--model.auxiliary_weight", "0.4"),
    "rare": ("crops of rare classes", "--data.augment.rare_class_crops", "0.5"),
    "classmix": ("ClassMix", "--data.augment.classmix", "0.5"),
    "averages": ("averaged weights (0.98)", "--train.ema_momentum", "0.98"),
    "decay": ("ten times the weight decay", "--train.weight_decay", "1e-3"),
    "slow_backbone": (
        "a fifth of the learning rate in the backbone",
        *("--train.backbone_learning_rate_factor", "0.2"),
    ),
    "dappm": ("DAPPM", "--model.context", "dappm"),
    "stride_8": ("output stride 8", "--model.output_stride", "8"),
}

# Name -> `(description, options of keras-aspp train)`. All but the first smooth
# labels, so that each differs from `smooth` in one ingredient.
RECIPES = {
    "plain": ("as configured", ()),
    "smooth": ("label smoothing 0.1", _SMOOTH),
    **{
        name: (f"+ {what}", (*_SMOOTH, *options))
        for name, (what, *options) in _INGREDIENTS.items()
    },
}
