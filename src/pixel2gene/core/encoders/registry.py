"""What each encoder is, without loading it: torch is not needed to read this."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

SUPERPIXEL_UM = 8.0

HALVES = (0.5, 0.5, 0.5)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HIBOU = (0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816)
H_OPTIMUS = (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)
LUNIT = (0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464)

CC_BY_NC_ND = "CC-BY-NC-ND-4.0"
HUB = "https://huggingface.co"


@dataclass(frozen=True)
class EncoderInfo:
    """Facts about an encoder.

    Attributes
    ----------
    name
        By which users choose it.
    channels
        Of its vectors, before colour and surroundings are joined.
    mpp
        Resolution of the images that it wants, µm per pixel.
    token
        Pixels per token and axis.
    mean, std
        Of red, green and blue (0 to 1), which are taken off and divided by.
    licence
        Of the weights.
    commercial
        Whether that allows commercial use.
    gated
        Whether the weights are handed out on request only.
    weights
        Where they come from.
    citation
        What to cite.
    lazyslide
        Name in `lazyslide-models`, which loads it; None if it is loaded otherwise.
    """

    name: str
    channels: int
    mpp: float
    token: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    licence: str
    commercial: bool
    gated: bool
    weights: str
    citation: str
    lazyslide: str | None = None


# Dimensions, normalisation, licence and access: model pages, and the registry of lazyslide-models 0.1.0.
REGISTRY = {
    info.name: info
    for info in (
        # name, channels, mpp, token, mean, std, licence, commercial, gated, weights, citation, lazyslide
        EncoderInfo(
            "lite0", 176, 0.5, 16, HALVES, HALVES, "Apache-2.0", True, False, "installed with pixel2gene",
            "Tan and Le, ICML 2019, arXiv:1905.11946",
        ),
        EncoderInfo(
            "hipt", 576, 0.5, 16, HALVES, HALVES, "Apache-2.0 with Commons Clause", False, False,
            "https://github.com/mahmoodlab/HIPT, in a folder of your own", "Chen et al., CVPR 2022, arXiv:2206.02647",
        ),
        EncoderInfo(
            "uni", 1024, 0.5, 16, *IMAGENET, CC_BY_NC_ND, False, True, f"{HUB}/MahmoodLab/UNI",
            "Chen et al., Nat Med 2024, doi:10.1038/s41591-024-02857-3", "uni",
        ),
        EncoderInfo(
            "uni2-h", 1536, 0.5, 14, *IMAGENET, CC_BY_NC_ND, False, True, f"{HUB}/MahmoodLab/UNI2-h",
            "Chen et al., Nat Med 2024, doi:10.1038/s41591-024-02857-3", "uni2",
        ),
        EncoderInfo(
            "virchow", 1280, 0.5, 14, *IMAGENET, "Apache-2.0", True, True, f"{HUB}/paige-ai/Virchow",
            "Vorontsov et al., Nat Med 2024, doi:10.1038/s41591-024-03141-0", "virchow",
        ),
        EncoderInfo(
            "virchow2", 1280, 0.5, 14, *IMAGENET, CC_BY_NC_ND, False, True, f"{HUB}/paige-ai/Virchow2",
            "Zimmermann et al., 2024, arXiv:2408.00738", "virchow2",
        ),
        EncoderInfo(
            "h-optimus-0", 1536, 0.5, 14, *H_OPTIMUS, "Apache-2.0", True, False, f"{HUB}/bioptimus/H-optimus-0",
            "Saillard et al., H-optimus-0, 2024", "h-optimus-0",
        ),
        EncoderInfo(
            "h-optimus-1", 1536, 0.5, 14, *H_OPTIMUS, CC_BY_NC_ND, False, True, f"{HUB}/bioptimus/H-optimus-1",
            "Bioptimus, H-optimus-1, 2025", "h-optimus-1",
        ),
        EncoderInfo(
            "h0-mini", 768, 0.5, 14, *H_OPTIMUS, CC_BY_NC_ND, False, True, f"{HUB}/bioptimus/H0-mini",
            "Filiot et al., 2025, arXiv:2501.16239", "h0-mini",
        ),
        EncoderInfo(
            "gigapath", 1536, 0.5, 16, *IMAGENET, "Apache-2.0 with conditions", False, True,
            f"{HUB}/prov-gigapath/prov-gigapath", "Xu et al., Nature 2024, doi:10.1038/s41586-024-07441-w", "gigapath",
        ),
        EncoderInfo(
            "phikon", 768, 0.5, 16, *IMAGENET, "Owkin non-commercial", False, False, f"{HUB}/owkin/phikon",
            "Filiot et al., 2023, doi:10.1101/2023.07.21.23292757", "phikon",
        ),
        EncoderInfo(
            "phikon-v2", 1024, 0.5, 16, *IMAGENET, "Owkin non-commercial", False, False, f"{HUB}/owkin/phikon-v2",
            "Filiot et al., 2024, arXiv:2409.09173", "phikonv2",
        ),
        EncoderInfo(
            "hibou-b", 768, 0.5, 14, *HIBOU, "Apache-2.0", True, True, f"{HUB}/histai/hibou-b",
            "Nechaev et al., 2024, arXiv:2406.05074", "hibou-b",
        ),
        EncoderInfo(
            "hibou-l", 1024, 0.5, 14, *HIBOU, "Apache-2.0", True, True, f"{HUB}/histai/hibou-L",
            "Nechaev et al., 2024, arXiv:2406.05074", "hibou-l",
        ),
        EncoderInfo(
            "midnight", 1536, 0.5, 14, HALVES, HALVES, "MIT", True, True, f"{HUB}/kaiko-ai/midnight",
            "Karasikov et al., 2025, arXiv:2504.05186", "midnight",
        ),
        EncoderInfo(
            "conch", 768, 0.5, 16, *CLIP, CC_BY_NC_ND, False, True, f"{HUB}/MahmoodLab/conch",
            "Lu et al., Nat Med 2024, doi:10.1038/s41591-024-02856-4", "conch",
        ),
        EncoderInfo(
            "lunit-dino-s16", 384, 0.5, 16, *LUNIT, "Lunit non-commercial", False, False,
            f"{HUB}/1aurent/vit_small_patch16_224.lunit_dino", "Kang et al., CVPR 2023, arXiv:2212.04690",
            "lunit-dino-s16",
        ),
    )
}  # fmt: skip


def encoders() -> pd.DataFrame:
    """Encoders that `pixel2gene.tl.embed` takes by name; it takes folders of weights as well.

    Returns
    -------
    One row per encoder: length of its vectors (``channels``), resolution that it wants (``mpp``, µm per pixel), side of
    a token (``token``, px), normalisation (``mean`` and ``std`` of red, green and blue), ``licence`` of the weights,
    whether that allows ``commercial`` use, whether they are ``gated`` (handed out on request only), where the
    ``weights`` are to be had, and the ``citation``.

    Examples
    --------
    >>> p2g.encoders().loc["lite0", "licence"]
    'Apache-2.0'
    """
    table = pd.DataFrame([vars(info) for info in REGISTRY.values()]).set_index("name")
    return table.drop(columns="lazyslide")
