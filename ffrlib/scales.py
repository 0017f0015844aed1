"""What a scale stands on: its plain runs with their recipes, the nets of each family of experiments, what they vary."""

from __future__ import annotations

from ffrlib.spec import Recipe, RunSpec

HSQ_GL12 = "hierarchical_squared_group_l12"  # the criterion of HGSR's published script
FULL = Recipe(epochs=100, augment="crop_flip")
HGSR_RECIPE = Recipe(epochs=100, lr=0.01, schedule="step", milestones=(0.34, 0.67), gamma=0.2, augment="crop_flip")
# float32: the evidence of this scale comes from several machines, and not all multiply bfloat16 fast.
LAPTOP = {"epochs": 15, "schedule": "one_cycle", "augment": "crop_flip", "precision": "float32"}
BASES = {  # the plain runs on which a scale stands: {short name: RunSpec}
    "quick": {
        "digits_cnn": RunSpec(recipe=Recipe(epochs=10, batch_size=100, lr=0.1)),
    },
    "laptop": {
        "alexnet_small": RunSpec("cifar10", "alexnet_small", train_size=20000, scale="laptop",
                                 recipe=Recipe(lr=0.05, **LAPTOP)),
        "resnet20": RunSpec("cifar10", "resnet20", "A", train_size=20000, scale="laptop",
                            recipe=Recipe(lr=0.2, **LAPTOP)),
        # Published weights and a few epochs: a stand-in for training so deep a net.
        "resnet56": RunSpec("cifar10", "resnet56", "A", init="published", train_size=20000, scale="laptop",
                            recipe=Recipe(epochs=2, lr=0.02, augment="crop_flip", precision="float32")),
    },
    "paper": {
        "alexnet_small": RunSpec("cifar10", "alexnet_small", scale="paper", recipe=HGSR_RECIPE),
        "vgg11_small": RunSpec("cifar10", "vgg11_small", scale="paper", recipe=HGSR_RECIPE),
        "resnet18_small": RunSpec("cifar10", "resnet18_small", scale="paper", recipe=HGSR_RECIPE),
        "vgg16": RunSpec("cifar10", "vgg16", scale="paper", recipe=FULL),
        "resnet56": RunSpec("cifar10", "resnet56", "A", scale="paper", recipe=FULL),
        "resnet20": RunSpec("cifar10", "resnet20", "A", scale="paper", recipe=FULL),
        "vgg16_cifar100": RunSpec("cifar100", "vgg16", scale="paper", recipe=FULL),
        "resnet56_cifar100": RunSpec("cifar100", "resnet56", "A", scale="paper", recipe=FULL),
        "resnet18_tiny": RunSpec("tiny_imagenet", "resnet18_tiny", scale="paper", recipe=FULL),
        "resnet110": RunSpec("cifar10", "resnet110", "A", scale="paper", recipe=FULL),
        "resnet110_cifar100": RunSpec("cifar100", "resnet110", "A", scale="paper", recipe=FULL),
    },
}  # fmt: skip
HGSR_NETS = {
    "quick": ("digits_cnn",), "laptop": ("alexnet_small",), "paper": ("alexnet_small", "vgg11_small", "resnet18_small"),
}  # fmt: skip
HGSR_PAIRS = {"laptop": {"resnet20": ("group_l12", HSQ_GL12)}}  # a pair of H1 alone, on a further net
FIRST = ("vgg16", "resnet56")  # at scale paper: none, control and FFR, then the two penalties below, before all else
FURTHER = ("vgg16_cifar100", "resnet56_cifar100", "resnet18_tiny", "resnet110", "resnet110_cifar100")  # after the rest
FFR_NETS = {
    "quick": ("digits_cnn",), "laptop": ("resnet20",), "paper": ("vgg16", "resnet56", "resnet20", *FURTHER),
}  # fmt: skip
CUT_BY_LOSS = {"quick": ("digits_cnn",), "laptop": ("resnet20",), "paper": ("resnet56", "resnet18_tiny")}
TOGETHER = {  # the criteria put on a net beside FFR's arms
    "quick": ("l1", "group_lasso", HSQ_GL12), "laptop": ("group_lasso", HSQ_GL12),
    "paper": ("l1", "group_lasso", HSQ_GL12),
}  # fmt: skip
SEEDS = {"quick": 5, "laptop": 3, "paper": 5}
FRESH = range(100, 115)  # seeds of the confirmation (docs/protocol.md): its runs enter no other table
WIDE = ("l1", "group_lasso", "exclusive_sparsity", HSQ_GL12)  # tried at several widths where minutes count
READINGS = {  # one option of FFR's open reading varied at a time
    "norm l2": {"norm": "l2"}, "norm squared_l2": {"norm": "squared_l2"},
    "curvature angle": {"curvature_kind": "angle"},
    "tap pre_activation": {"tap": "pre_activation"}, "tap post_activation": {"tap": "post_activation"},
    "tap block_output": {"tap": "block_output"}, "transition pool_pad": {"transition": "pool_pad"},
    "transition shortcut": {"transition": "shortcut"},
}  # fmt: skip
CHANNEL_SCORES = (
    "l1_norm", "l2_norm", "bn_scale", "geometric_median", "feature_group", "flow", "taylor", "loss_increase", "random",
)  # fmt: skip
FEW_SCORES = ("l1_norm", "bn_scale", "geometric_median", "taylor", "random")
FINE_TUNE = {"quick": (3, 0.02), "laptop": (3, 0.02), "paper": (20, 0.01)}  # epochs, learning rate
TOLERANCES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # of the rise of the loss
FEW_SEEDS = {  # where it isn't the scale's own number
    "laptop": {"1_hgsr_criteria": 5, "2_hgsr_structure": 2, "3_hgsr_pruning": 1, "4_ffr_flow": 5,
               "5_ffr_pruning": 1, "6_ffr_readings": 1, "7_both_papers": 1},
}  # fmt: skip
BESIDE = {  # strengths beyond a grid or between two of it, in 1_hgsr_criteria or 4_ffr_flow alone (docs/protocol.md)
    ("quick", "digits_cnn"): {"hierarchical_squared_exclusive_sparsity": (0.019, 0.058)},
    ("laptop", "resnet20"): {"control": (0.01, 0.03), "both": (0.03, 0.09), "group_l12": (0.0006,), HSQ_GL12: (1e-6,)},
    ("paper", "alexnet_small"): {"group_l12": (0.00063,), "group_lasso": (0.001, 0.0018)},
}
FLOW_ARMS = {"control": (0, 0, 1), "length": (1, 0, 0), "curvature": (0, 1, 0), "both": (1, 1, 0)}
# ... of FlowPenalty's length and curvature and of the activation control.
