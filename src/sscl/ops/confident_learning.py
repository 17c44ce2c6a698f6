"""Which labels are errors, judged by another's probabilities.

Northcutt, Jiang, Chuang: "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 2021, sec. 3.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def label_errors(p: Float[Tensor, "n classes"], label: Int64[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Examples that both are pruned by class and by noise rate (the paper's method 5, "C+NR").

    By class: as many of those labelled i as are thought to be of other classes, the lowest p_i first. By noise rate:
    as many of those labelled i as are thought to be of class j, the highest p_j - p_i first, for each j.
    """
    noise = errors_expected(p, label)
    by_class, by_noise_rate = torch.zeros_like(label, dtype=torch.bool), torch.zeros_like(label, dtype=torch.bool)
    for i in range(p.shape[1]):
        labelled = (label == i).nonzero().squeeze(1)
        mine = p[labelled]
        by_class[labelled[mine[:, i].argsort()[: int(noise[i].sum())]]] = True
        for j in range(p.shape[1]):
            by_noise_rate[labelled[(mine[:, i] - mine[:, j]).argsort()[: int(noise[i, j])]]] = True
    return by_class & by_noise_rate


def errors_expected(p: Float[Tensor, "n classes"], label: Int64[Tensor, " n"]) -> Int64[Tensor, "classes classes"]:
    """How many examples with label i are of class j: n Q_ij, rounded; 0 on the diagonal.

    An example counts for class j where p_j reaches t_j, the mean of p_j over the examples labelled j; for the likeliest
    such class where there are several, for none where there is none. Each row of these counts C_ij is then stretched to
    all the examples labelled i.
    """
    classes = p.shape[1]
    examples = label.bincount(minlength=classes)
    t = torch.stack([p[label == j, j].mean() for j in range(classes)])  # NaN, which nothing reaches, without examples
    reaches = p >= t
    counted = reaches.any(1)
    likeliest = p.masked_fill(~reaches, -1.0).argmax(1)
    pairs = label[counted] * classes + likeliest[counted]
    counts = pairs.bincount(minlength=classes**2).view(classes, classes)
    noise = (counts / counts.sum(1, keepdim=True).clamp(min=1) * examples[:, None]).round().long()
    return noise.fill_diagonal_(0)
