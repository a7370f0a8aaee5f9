"""How the page looks: colours, type and spacing, in light and in dark."""

from pathlib import Path

from gradio.themes import Base, Color
from gradio.themes.utils import sizes
from gradio.themes.utils.fonts import LocalFont

# Warm greys, from paper to ink, and one accent: the green-blue of a deep lake.
GREYS = Color(
    "#fbfaf7", "#f5f3ee", "#e9e6df", "#d8d4cb", "#b3aea3", "#8a857a", "#696459", "#4b473f", "#302d28",
    "#1f1d1a", "#161513", name="paper",
)  # fmt: skip
LAKE = Color(
    "#effaf8", "#d5f1ed", "#abe2db", "#76cbc3", "#45aea7", "#28918c", "#1c7471", "#1a5d5c", "#194b4a",
    "#183f3f", "#082524", name="lake",
)  # fmt: skip

HERE = Path(__file__).parent
STYLESHEET, SCRIPT = HERE / "page.css", HERE / "page.js"


def theme() -> Base:
    """The page's theme; its typeface comes with gradio, so that nothing is fetched from elsewhere."""
    made = Base(
        primary_hue=LAKE,
        secondary_hue=LAKE,
        neutral_hue=GREYS,
        spacing_size=sizes.spacing_md,
        radius_size=sizes.radius_md,
        text_size=sizes.text_md,
        font=(LocalFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif"),
        font_mono=(LocalFont("IBM Plex Mono", weights=(400, 700)), "ui-monospace", "monospace"),
    )
    return made.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_900",
        body_text_color_dark="*neutral_100",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        background_fill_primary="white",
        background_fill_primary_dark="*neutral_900",
        background_fill_secondary="*neutral_100",
        background_fill_secondary_dark="*neutral_800",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_800",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_title_text_weight="600",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_shadow="none",
        block_shadow_dark="none",
        input_background_fill="*neutral_50",
        input_background_fill_dark="*neutral_950",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_700",
        input_border_color_focus="*primary_600",
        input_border_color_focus_dark="*primary_400",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_500",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_300",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_200",
        button_primary_text_color="white",
        button_primary_text_color_dark="*neutral_950",
        button_secondary_background_fill="*neutral_100",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover="*neutral_200",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_secondary_text_color="*neutral_900",
        button_secondary_text_color_dark="*neutral_100",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_700",
        slider_color="*primary_600",
        slider_color_dark="*primary_400",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
        link_text_color_hover="*primary_800",
        link_text_color_hover_dark="*primary_200",
    )
