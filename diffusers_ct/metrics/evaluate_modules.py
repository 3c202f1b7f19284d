"""The package's image metrics as modules of Hugging Face `evaluate`, with running sums instead of stored volumes.

    import evaluate
    from diffusers_ct.metrics.evaluate_modules import CTPSNR, CTRMSE

    metrics = evaluate.combine([CTPSNR(convention="full"), CTRMSE(convention="full", region="body")])
    for restored_hu, reference_hu in scans:
        metrics.add_batch(predictions=[restored_hu], references=[reference_hu])
    metrics.compute()

An item is an image (height, width) or a volume (depth, height, width) in HU. Results equal those of `metrics.image` on
all slices together, whatever the batches and their order. Needs the extra `metrics` (`pip install diffusers-ct[metrics]`);
nothing is downloaded, and no image is stored.

They come with the package and are not on the Hub: `evaluate.load("user/metric")` would run a script from there. What goes to the
Hub and back is their result, with the convention that it was measured by. `diffusers_ct.hub.render_model_card` writes every number
of a benchmark as an `EvalResult` with convention, region, n and interval, `push_model` pushes it, and
`huggingface_hub.ModelCard.load("user/model").data.eval_results` gives it back. A number of one's own is such a result, too:

    EvalResult(metric_type="psnr_pooled_db", metric_value=found["psnr_pooled_db"], metric_config=metric.config_name, ...)

`evaluate.save` is for files on one's own machine: it writes the path of the interpreter, which does not belong on the Hub.
"""

from typing import Any, Literal

import numpy as np
from datasets import Features, Sequence, Value

from . import image

try:
    import evaluate
except ImportError as error:
    raise ImportError(
        "The modules for Hugging Face evaluate need its package: pip install 'diffusers-ct[metrics]'. "
        "The same metrics are in `diffusers_ct.metrics` without it."
    ) from error

Region = Literal["image", "body"]

_INPUTS = """
Args:
    predictions: images (height, width) or volumes (depth, height, width) in HU, a list or an array of them.
    references: as many, of the same shapes.
"""
_CITATIONS = {
    "ssim": """@article{wang2004ssim,
  title = {Image quality assessment: from error visibility to structural similarity},
  author = {Wang, Zhou and Bovik, Alan C. and Sheikh, Hamid R. and Simoncelli, Eero P.},
  journal = {IEEE Transactions on Image Processing}, volume = {13}, number = {4}, pages = {600--612}, year = {2004}
}""",
    "conventions": """@article{eulig2024ldctbench,
  title = {Benchmarking deep learning-based low-dose CT image denoising algorithms},
  author = {Eulig, Elias and Ommer, Bj{\\"o}rn and Kachelrie{\\ss}, Marc},
  journal = {Medical Physics}, year = {2024}
}""",
}


class _RunningMetric(evaluate.Metric):
    """A metric that keeps sums in memory: `evaluate`'s Arrow cache takes 22 s and 8.6 GB for one pair of volumes.

    Args:
        convention: name of the clip, data range and window, see `metrics.image.CONVENTIONS`.
        experiment_id: as in `evaluate`.
        process_id: 0 alone, see Raises.
        num_process: 1 alone, see Raises.

    Raises:
        ValueError: for an unknown convention or several processes, whose sums would not be joined.
    """

    summary = ""
    outputs = ""
    citation_key = "conventions"

    def __init__(self, *, convention: str, num_process: int = 1, process_id: int = 0, **kwargs: Any) -> None:
        image.convention_of(convention)
        if (num_process, process_id) != (1, 0):
            raise ValueError(
                "Running sums live in one process: gather the images there, or make one module a process and average by "
                "the number of slices."
            )
        self.convention = convention
        self._sums: dict[str, float] = {}
        super().__init__(config_name=convention, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        rule = image.CONVENTIONS[self.convention]
        volume = Sequence(Sequence(Sequence(Value("float32"))))
        return evaluate.MetricInfo(
            description=f"{self.summary} Convention {self.convention!r}: {_described(rule)}.",
            citation=_CITATIONS[self.citation_key],
            inputs_description=f"{_INPUTS}Returns:\n    {self.outputs}\n",
            features=Features({"predictions": volume, "references": volume}),
            license="Apache-2.0",
            reference_urls=[],
        )

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Adds one image or volume and its reference, in HU."""
        # `evaluate.combine(...).add` hands on the plural names
        prediction = kwargs.pop("predictions", prediction)
        reference = kwargs.pop("references", reference)
        if kwargs:
            raise ValueError(f"Unknown inputs {sorted(kwargs)}: `prediction` and `reference` are taken.")
        if prediction is None or reference is None:
            raise ValueError("`prediction` and `reference` are both needed.")
        predicted, truth = np.asarray(prediction), np.asarray(reference)
        for name, value in self._terms(predicted, truth).items():  # refuses before anything is added
            self._sums[name] = self._sums.get(name, 0.0) + value

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Adds images or volumes and their references, in HU."""
        if kwargs:
            raise ValueError(f"Unknown inputs {sorted(kwargs)}: `predictions` and `references` are taken.")
        if predictions is None or references is None:
            raise ValueError("`predictions` and `references` are both needed.")
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions do not fit {len(references)} references.")
        for name, shape in (("predictions", np.shape(predictions[0])), ("references", np.shape(references[0]))):
            if len(shape) not in (2, 3):
                raise ValueError(
                    f"`{name}` must be a list of images (height, width) or volumes (depth, height, width), its first has "
                    f"shape {shape}: pass one volume as [volume]."
                )
        before = dict(self._sums)
        try:
            for prediction, reference in zip(predictions, references):
                self.add(prediction=prediction, reference=reference)
        except Exception:
            self._sums = before  # a batch is added whole or not at all
            raise

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, float]:
        """Result of all that was added, and of what is given; then begins anew."""
        if kwargs:
            raise ValueError(f"Unknown inputs {sorted(kwargs)}: `predictions` and `references` are taken.")
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        if not self._sums:
            raise ValueError("Nothing was added: call `add` or `add_batch` first.")
        sums, self._sums = self._sums, {}
        return self._result(sums)

    def card(self) -> str:
        """The module's card in Markdown, with the metadata of a Hub page."""
        text = [
            "---", f"title: {type(self).__name__}", "tags:", "- evaluate", "- metric", "- computed-tomography",
            "license: apache-2.0", "---", "", f"# {type(self).__name__}", "", self.description, "", "## How to use", "",
            "```python", f"from diffusers_ct.metrics.evaluate_modules import {type(self).__name__}", "",
            f"metric = {type(self).__name__}({self._arguments()})", "metric.add_batch(predictions=[restored_hu], "
            "references=[reference_hu])  # volumes in HU", "metric.compute()", "```", "", "## Output", "", self.outputs, "",
            "## Limits", "", "Numbers of other conventions cannot be compared with these: the same pair of images scores "
            "19.5 to 37.7 dB depending on the convention. On pairs of one scan, noise of the reference bounds every "
            "score. Image metrics say nothing of detectability. The unit of statistics is the patient: call `compute` "
            "once a patient, then average.", "", "## Citation", "", "```bibtex", self.citation, "```", "",
        ]  # fmt: skip
        return "\n".join(text)

    def _arguments(self) -> str:
        return f'convention="{self.convention}"'

    def _terms(self, predicted: np.ndarray, reference: np.ndarray) -> dict[str, float]:
        raise NotImplementedError

    def _result(self, sums: dict[str, float]) -> dict[str, float]:
        raise NotImplementedError


class CTPSNR(_RunningMetric):
    """`psnr_pooled` and `psnr_slice_mean` in dB; the former is left out where the range changes from slice to slice."""

    summary = (
        "Peak signal-to-noise ratio of CT images in dB: pooled (mean squared error, then log) and mean over slices."
    )
    outputs = (
        "`psnr_pooled_db` (not for `corediff`, whose range changes from slice to slice) and `psnr_slice_mean_db`; "
        "higher is better, infinite for equal images."
    )

    def _terms(self, predicted: np.ndarray, reference: np.ndarray) -> dict[str, float]:
        slices = _slices(predicted)
        terms: dict[str, float] = {"slices": slices}
        terms["db"] = slices * image.psnr_slice_mean(predicted, reference, convention=self.convention)
        if image.CONVENTIONS[self.convention].data_range_hu != "reference":
            terms["squared"] = predicted.size * image.rmse(predicted, reference, convention=self.convention) ** 2
            terms["pixels"] = predicted.size
        return terms

    def _result(self, sums: dict[str, float]) -> dict[str, float]:
        found = {}
        if "squared" in sums:
            mse = sums["squared"] / sums["pixels"]
            peak = float(image.CONVENTIONS[self.convention].data_range_hu)
            found["psnr_pooled_db"] = float("inf") if mse == 0.0 else 10.0 * float(np.log10(peak**2 / mse))
        return {**found, "psnr_slice_mean_db": sums["db"] / sums["slices"]}


class CTSSIM(_RunningMetric):
    """`ssim`, mean over slices."""

    summary = "Structural similarity of CT images, mean over slices."
    outputs = "`ssim` in [-1, 1]; higher is better."
    citation_key = "ssim"

    def _terms(self, predicted: np.ndarray, reference: np.ndarray) -> dict[str, float]:
        slices = _slices(predicted)
        return {"slices": slices, "ssim": slices * image.ssim(predicted, reference, convention=self.convention)}

    def _result(self, sums: dict[str, float]) -> dict[str, float]:
        return {"ssim": sums["ssim"] / sums["slices"]}


class _ErrorMetric(_RunningMetric):
    """One that averages over voxels, of the image or of the patient's body.

    Args:
        convention: as in `CTPSNR`.
        region: "image", or "body": `metrics.body_mask` of each reference as it is added, so add whole volumes.
    """

    def __init__(self, *, convention: str, region: Region, **kwargs: Any) -> None:
        if region not in ("image", "body"):
            raise ValueError(f'`region` must be "image" or "body", got {region!r}.')
        self.region = region
        super().__init__(convention=convention, **kwargs)

    def _arguments(self) -> str:
        return f'{super()._arguments()}, region="{self.region}"'

    def _terms(self, predicted: np.ndarray, reference: np.ndarray) -> dict[str, float]:
        mask = image.body_mask(reference) if self.region == "body" else None
        voxels = int(mask.sum()) if mask is not None else predicted.size
        return {"voxels": voxels, "sum": voxels * self._mean(predicted, reference, mask)}

    def _mean(self, predicted: np.ndarray, reference: np.ndarray, mask: np.ndarray | None) -> float:
        raise NotImplementedError


class CTRMSE(_ErrorMetric):
    """`rmse_hu`, over all voxels together."""

    summary = "Root mean square error of CT images in HU, over all voxels together."
    outputs = "`rmse_hu`; lower is better."

    def _mean(self, predicted: np.ndarray, reference: np.ndarray, mask: np.ndarray | None) -> float:
        return image.rmse(predicted, reference, convention=self.convention, mask=mask) ** 2

    def _result(self, sums: dict[str, float]) -> dict[str, float]:
        return {"rmse_hu": float(np.sqrt(sums["sum"] / sums["voxels"]))}


class CTMAE(_ErrorMetric):
    """`mae_hu`, over all voxels together."""

    summary = "Mean absolute error of CT images in HU, over all voxels together."
    outputs = "`mae_hu`; lower is better."

    def _mean(self, predicted: np.ndarray, reference: np.ndarray, mask: np.ndarray | None) -> float:
        return image.mae(predicted, reference, convention=self.convention, mask=mask)

    def _result(self, sums: dict[str, float]) -> dict[str, float]:
        return {"mae_hu": sums["sum"] / sums["voxels"]}


class CTBias(_ErrorMetric):
    """`bias_hu`, over all voxels together."""

    summary = "Mean error of CT images in HU, predicted minus reference, over all voxels together."
    outputs = "`bias_hu`; 0 is best, positive if the prediction is too dense."

    def _mean(self, predicted: np.ndarray, reference: np.ndarray, mask: np.ndarray | None) -> float:
        return image.bias(predicted, reference, convention=self.convention, mask=mask)

    def _result(self, sums: dict[str, float]) -> dict[str, float]:
        return {"bias_hu": sums["sum"] / sums["voxels"]}


MODULES = (CTPSNR, CTSSIM, CTRMSE, CTMAE, CTBias)


def _slices(volume: np.ndarray) -> int:
    return 1 if volume.ndim == 2 else len(volume)


def _described(rule: image.Convention) -> str:
    peak = "max - min of each reference slice" if rule.data_range_hu == "reference" else f"{rule.data_range_hu:g} HU"
    window = "gaussian 11 x 11, sigma 1.5" if rule.ssim_window == "gaussian" else "uniform 7 x 7"
    border = "borders left out" if rule.ssim_border == "crop" else "borders padded with the darkest value"
    low, high = rule.clip_hu
    return f"clip {low:g} to {high:g} HU, data range {peak}, SSIM window {window}, {border} ({rule.source})"
