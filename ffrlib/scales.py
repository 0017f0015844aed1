"""What a scale stands on: its plain runs with their recipes, and which nets each family of experiments takes."""

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
