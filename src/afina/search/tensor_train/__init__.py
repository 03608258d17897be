"""A sampler for Optuna: a Gaussian process whose posterior over a grid is a tensor train.

The story of one suggestion, in the order of the modules:

1. `history.py`, `encoding.py`: trials become points in the unit cube and values to be minimised.
2. `schedule.py`: says which of the next steps this suggestion takes, and why.
3. `startup.py`: the first trials are a Latin hypercube.
4. `output_warping.py`, `kernel.py`, `surrogate.py`, `online_surrogate.py`, `online_rotation.py`: a Gaussian process is
   fitted to the warped values, from where the last suggestion left it.
5. `strategies.py`, `local_surrogates.py`: during a stagnation another surrogate or target may take its place.
6. `posterior_train.py`, `candidates.py`, `rotated_candidates.py`: candidates on a grid.
7. `acquisition.py`, `problem.py`, `propose.py`: the best of them by expected improvement, polished between the levels.

A worked example: two parameters, three trials, and a grid of three levels each. `theta` has the logarithms of
amplitudes 1, 1, lengthscales 0.5, 0.5 (additive part) and 1, 1 (product), weights of pairs and product, and the noise.

>>> import numpy as np
>>> from afina.search.tensor_train.kernel import Layout
>>> from afina.search.tensor_train.posterior_train import TensorTrain
>>> from afina.search.tensor_train.surrogate import Surrogate
>>> points = np.array([[0.0, 0.0], [1.0, 0.5], [0.5, 1.0]])
>>> values = np.array([1.0, 0.2, -1.2])
>>> theta = np.log([1, 1, 0.5, 0.5, 1, 1, 0.01, 0.01, 1e-6])
>>> surrogate = Surrogate(Layout(np.array([False, False])), theta, points, values)

The mean at a point is a sum over the three trials of a weight times the kernel. On the grid the kernel's factors are
one table for each coordinate, (levels, trials); a point of the grid picks one row of each:

>>> train = TensorTrain(surrogate, [np.array([0.0, 0.5, 1.0]), np.array([0.0, 0.5, 1.0])])
>>> first_row, second_row = train.additive_minimum()[0].tolist()
>>> first_row, second_row
(1, 2)

The additive part of the mean is a sum of one function of each coordinate, so its least value over all 9 points (in d
dimensions, over levels^d) is found coordinate by coordinate, exactly: at the point (0.5, 1.0), the third trial.
At the data the mean is the value, and the variance next to nothing:

>>> mean, variance = train.posterior(np.array([[0, 0], [2, 1], [1, 2]]))
>>> np.round(mean, 2).tolist(), bool(variance.max() < 1e-4)
([1.0, 0.2, -1.2], True)
"""

from afina.search.tensor_train.sampler import TensorTrainSampler

__all__ = ["TensorTrainSampler"]
