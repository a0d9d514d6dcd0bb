"""What this distribution registers. Light: the parts are imported when they are first used."""

from __future__ import annotations

from collections.abc import Iterator

from graftwork import Component, Paper, hookimpl

__all__ = ["graftwork_datasets", "graftwork_evaluators", "graftwork_models", "graftwork_objectives"]

HERE = "graftwork_dann"
DANN = Paper("Domain-Adversarial Training of Neural Networks", arxiv="1505.07818", year=2016, venue="JMLR")
MSDA = Paper("Marginalized Denoising Autoencoders for Domain Adaptation", arxiv="1206.4683", year=2012, venue="ICML")
PAD = Paper(
    "Analysis of Representations for Domain Adaptation",
    year=2006,
    venue="NIPS",
    url="https://papers.nips.cc/paper/2983-analysis-of-representations-for-domain-adaptation",
)


@hookimpl
def graftwork_objectives() -> Iterator[Component]:
    """Domain-adversarial training around any task."""
    yield Component(
        "domain-adversarial", f"{HERE}.objective:DomainAdversarial", "Solve a task with features that do not tell the domains apart", DANN
    )


@hookimpl
def graftwork_models() -> Iterator[Component]:
    """The paper's networks, and the feature map that its text experiments start from."""
    yield Component("dann-convnet", f"{HERE}.convnet:DannConvNet", "The paper's networks for MNIST, SVHN and GTSRB", DANN)
    yield Component(
        "bottleneck-classifier",
        f"{HERE}.bottleneck:BottleneckClassifier",
        "Any backbone with a narrow bottleneck and a new classifier, as on Office",
        DANN,
        example={"backbone": "small-cnn", "num_classes": 31},
    )
    yield Component(
        "shallow-dann", f"{HERE}.shallow:ShallowDANN", "One sigmoid layer and a logistic domain head", DANN, example={"in_features": 2}
    )
    yield Component(
        "msda", f"{HERE}.msda:MSDA", "Stacked denoising autoencoders with the noise integrated out", MSDA, example={"in_features": 2}
    )


@hookimpl
def graftwork_datasets() -> Iterator[Component]:
    """Digits blended into photographs."""
    yield Component(
        "mnist-m",
        f"{HERE}.mnist_m:MnistM",
        "Any digits blended into any photographs, as a second domain",
        DANN,
        example={"digits": "digits", "photos": "photos"},
    )


@hookimpl
def graftwork_evaluators() -> Iterator[Component]:
    """How far apart two domains are, and which setting to choose without target labels."""
    yield Component(
        "proxy-a-distance",
        f"{HERE}.proxy_a_distance:ProxyADistance",
        "How well a linear classifier tells two domains apart",
        PAD,
        example={"source": "source/test", "target": "target/test"},
    )
    yield Component(
        "reverse-validation",
        f"{HERE}.reverse_validation:ReverseValidation",
        "Choose a setting of domain-adversarial without target labels",
        DANN,
        example={"source": "source/train", "target": "target/train", "settings": {"none": {"high": 0.0}, "paper": {}}},
    )
    yield Component(
        "domain-scatter",
        f"{HERE}.domain_scatter:DomainScatter",
        "A picture of two domains' features, and of the decision in two dimensions",
        DANN,
        example={"source": "source/test", "target": "target/test"},
    )
