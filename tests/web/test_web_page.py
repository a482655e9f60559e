"""The page of `visard web` in a real browser, against the real web server and a real Triton with tiny models."""

from __future__ import annotations

import re
import zipfile
from contextlib import ExitStack
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect

from visard import judgement
from visard_testing.browser import chromium, copy_picture, drop, tab_to, watched_page
from visard_testing.web_server import web_server

pytestmark = pytest.mark.browser

expect.set_options(timeout=60_000)  # a busy machine may take long

UPLOAD = "Click or drag & drop an image here to upload"
SECRET = "Winterfeldt"  # in the file's name and its metadata: it must come out nowhere


@pytest.fixture(scope="module")
def photos(astronaut, tmp_path_factory):
    """Name → photo: one face, two, one too small beside one, none; and files that are no photos."""
    folder = tmp_path_factory.mktemp("photos")
    whole = Image.open(astronaut).convert("RGB")
    head = whole.crop((60, 0, 430, 330))  # without the badge on the suit, which looks like a face
    two = Image.new("RGB", (740, 330))
    two.paste(head, (0, 0))
    two.paste(head, (370, 0))
    with_small = Image.new("RGB", (740, 330), "slategray")
    with_small.paste(head, (0, 0))
    with_small.paste(head.resize((131, 117), Image.Resampling.LANCZOS), (480, 100))
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    exif[0x010E] = SECRET
    exif.get_ifd(0x8825)[1] = "N"
    head.rotate(90, expand=True).save(folder / f"{SECRET}.jpg", exif=exif, comment=SECRET.encode(), quality=95)
    head.save(folder / "one.png")
    two.save(folder / "two.webp", quality=95)
    with_small.save(folder / "small.jpg", quality=95)
    Image.new("RGB", (400, 300), "slategray").save(folder / "nobody.png")
    head.save(folder / "moving.gif")
    (folder / "drawn.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    (folder / "disguised.jpg").write_bytes((folder / "moving.gif").read_bytes())
    # A camera's picture: a JPEG after another.
    head.save(folder / "camera.mjpeg", format="JPEG", quality=95)
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def site(tiny_server):
    with web_server(tiny_server.grpc_url) as url:
        yield f"{url}/"


@pytest.fixture(scope="module")
def browser(photos):
    with chromium(photos["camera"]) as running:
        yield running


@pytest.fixture
def page(browser, site):
    with watched_page(browser, site) as opened:
        yield opened


def consent(page):
    page.get_by_label("I may use these photos").check()


def choose(page, *photos):
    """Choose photos in the file dialog that a click opens. Returns the last one's card."""
    before = page.locator(".card").count()
    with page.expect_file_chooser() as chooser:
        page.get_by_text(UPLOAD).click()
    chooser.value.set_files(photos)
    return page.locator(".card").nth(before + len(photos) - 1)


def saved(card):
    expect(card.get_by_text("Image saved")).to_be_visible()
    return card


def swapped(card):
    """Press the button that swaps, and wait for the result."""
    card.get_by_role("button", name=re.compile("^Swap")).click()
    expect(card.get_by_role("heading", name=re.compile("swapped"))).to_be_visible()
    return card


def pixels(page, url):
    answer = page.request.get(url)
    assert answer.ok, answer.text()
    return np.asarray(Image.open(BytesIO(answer.body())).convert("RGB"), np.int16)


def name_of(page, card):
    """The address under which the server keeps a card's photo, from the picture that the card shows."""
    shown = card.get_by_alt_text("as it came")
    expect(shown).to_have_attribute("src", re.compile("^page/photos/"))
    return page.url + str(shown.get_attribute("src")).split("/before")[0]


def test_nothing_is_sent_before_consent(page, photos):
    sent = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    choose(page, photos["one"], photos["two"])
    waiting = page.get_by_text("2 photos wait for your confirmation above. Nothing has been sent yet.")
    expect(waiting.first).to_be_visible()
    expect(page.get_by_label("I may use these photos")).to_be_focused()
    page.wait_for_load_state("networkidle")
    assert not sent
    consent(page)
    saved(page.locator(".card").first)
    saved(page.locator(".card").last)
    expect(page.locator("#waiting")).to_be_hidden()
    assert len(sent) == 2


def test_boxes_and_opinions_of_two_faces(page, photos):
    consent(page)
    card = saved(choose(page, photos["two"]))
    expect(card.get_by_role("heading", name="2 faces found")).to_be_visible()
    expect(page.get_by_role("status")).to_have_text("two.webp: Image saved in memory, not on disk. 2 faces found.")
    opinion = re.compile(r"Apparent gender: (fe)?male, \d\d\s% confidence")
    for number in (1, 2):
        expect(card.get_by_role("group", name=f"Face {number}")).to_have_accessible_description(opinion)
    # The boxes lie over the astronaut's two heads, wherever the photo is on the screen.
    photo = card.locator(".photo").bounding_box()
    centres = []
    for box in card.locator(".box").all():
        place = box.bounding_box()
        centres.append(
            (
                (place["x"] + place["width"] / 2 - photo["x"]) / photo["width"],
                (place["y"] + place["height"] / 2 - photo["y"]) / photo["height"],
            )
        )
    assert np.allclose(sorted(centres), [(0.22, 0.36), (0.72, 0.36)], atol=0.06)


def test_choice_result_and_comparison(page, photos):
    """The second face is left alone and stays as it was to the pixel; the first is swapped where the page shows it."""
    consent(page)
    card = saved(choose(page, photos["two"]))
    leave = card.get_by_role("group", name="Face 2").get_by_role("radio", name="Leave visible")
    leave.check()
    expect(card.get_by_role("button", name="Swap 1 face")).to_be_visible()
    places = [float(box.evaluate("box => parseFloat(box.style.left)")) for box in card.locator(".box").all()]
    swapped(card)
    expect(card.get_by_role("heading", name="1 face swapped, 1 left visible")).to_be_focused()
    expect(card.get_by_text("1 face is still visible in this result, because you left it so.")).to_be_visible()
    first, second = card.locator(".results > li").all()
    expect(first.get_by_text("Swapped: now looks")).to_be_visible()
    expect(
        first.get_by_text(re.compile(r"One recogniser does not match it any more\. Distance \d\.\d\d"))
    ).to_be_visible()
    expect(first.get_by_text(re.compile(r"Similarity \d+\.\d\s%, pixel cosine -?\d\.\d\d"))).to_be_visible()
    assert first.get_by_role("img").count() == 2
    expect(second.get_by_text("Left visible, as chosen.")).to_be_visible()
    assert second.get_by_role("img").count() == 1
    expect(card.get_by_alt_text("with other faces")).to_have_js_property("naturalWidth", 740)

    name = name_of(page, card)
    change = np.abs(pixels(page, f"{name}/after?format=png") - pixels(page, f"{name}/before?format=png")).max(axis=2)
    halves = [change[:, :370], change[:, 370:]]
    left, right = halves if places[0] < places[1] else halves[::-1]
    assert left.max() > 50
    assert not right.max()

    split = card.get_by_role("slider", name="Compare")
    handle = card.locator(".handle")
    for key, share in (("Home", 0), ("End", 1)):
        split.press(key)
        photo, line = card.locator(".photo").bounding_box(), handle.bounding_box()
        assert line["x"] + line["width"] / 2 - photo["x"] == pytest.approx(share * photo["width"], abs=1)
        clip = card.locator(".layer.before").evaluate("layer => getComputedStyle(layer).clipPath")
        assert (
            clip.replace("calc(100% - 0%)", "100%").replace("calc(0%)", "0%")
            == f"inset(0px {100 - share * 100}% 0px 0px)"
        )
    expect(split).to_have_attribute("aria-valuetext", "100 % before, 0 % after")

    # Chosen anew: none at all, which is refused; then both, with their directions named.
    card.get_by_role("button", name="Change the choices").click()
    expect(card.get_by_role("heading", name="2 faces found")).to_be_focused()
    card.get_by_role("group", name="Face 1").get_by_role("radio", name="Leave visible").check()
    card.get_by_role("button", name="Anonymise").click()
    expect(card.get_by_role("alert")).to_have_text(
        "All faces are to stay visible. Choose at least one to swap or to cover."
    )
    card.get_by_role("group", name="Face 1").get_by_role("radio", name="To male").check()
    card.get_by_role("group", name="Face 2").get_by_role("radio", name="To female").check()
    swapped(card)
    expect(card.get_by_role("heading", name="2 faces swapped")).to_be_visible()
    expect(card.get_by_text("still visible")).to_have_count(0)


def test_face_too_small_is_covered_without_a_click(page, photos):
    consent(page)
    card = saved(choose(page, photos["small"]))
    small = card.get_by_role("group", name="Face 2")
    expect(small).to_have_accessible_description(
        "Too small to swap, with fewer than 40 pixels across: it will be covered."
    )
    assert [radio.get_attribute("value") for radio in small.get_by_role("radio").all()] == ["cover", "leave"]
    expect(small.get_by_role("radio", name="Cover")).to_be_checked()
    card.get_by_role("button", name="Swap 1 face, cover 1 face").click()
    expect(card.get_by_role("heading", name="1 face swapped, 1 covered")).to_be_focused()
    expect(card.get_by_text("Covered: as chosen.")).to_be_visible()
    expect(card.get_by_text("still visible")).to_have_count(0)


def test_drag_and_drop(page, photos):
    consent(page)
    drop(page, photos["one"], photos["two"])
    cards = page.locator(".card")
    saved(cards.nth(0))
    saved(cards.nth(1))
    expect(cards.nth(0).get_by_role("heading", name="1 face found")).to_be_visible()
    expect(cards.nth(1).get_by_role("heading", name="2 faces found")).to_be_visible()


def test_paste(page, photos):
    consent(page)
    copy_picture(page, photos["one"])
    page.keyboard.press("Control+v")
    saved(page.locator(".card"))
    page.evaluate("navigator.clipboard.writeText('a text')")
    page.keyboard.press("Control+v")
    expect(page.get_by_text("The clipboard holds no picture.")).to_be_visible()


def test_camera(page):
    consent(page)
    page.get_by_role("button", name="Use the camera").click()
    dialog = page.get_by_role("dialog", name="Take a photo")
    take = dialog.get_by_role("button", name="Take the photo")
    expect(take).to_be_focused()
    streaming = "document.querySelector('video').srcObject?.active ?? false"
    assert page.evaluate(streaming)
    take.click()
    expect(dialog).to_be_hidden()
    page.wait_for_function(f"!({streaming})")  # the event that says "closed" comes after the dialog is gone
    card = saved(page.locator(".card"))
    expect(card.get_by_role("heading", name="Camera photo")).to_be_visible()
    expect(card.get_by_role("heading", name="1 face found")).to_be_visible()


def test_refusals_say_what_works(page, photos):
    consent(page)
    refused = ("moving", "disguised", "drawn")
    drop(page, *(photos[name] for name in refused))
    cards = page.locator(".card")
    expect(cards).to_have_count(3)
    for card in cards.all():
        expect(card.get_by_role("alert")).to_have_text(re.compile("JPEG, PNG, WebP, AVIF and HEIC"))
        expect(card.get_by_text("Image saved")).to_be_hidden()
        expect(card.get_by_role("button", name="Try again")).to_be_hidden()  # it would not help
    saved(choose(page, photos["one"]))  # and the next photo has its chance
    cards.first.get_by_role("button", name="Remove").click()
    expect(cards).to_have_count(3)


def on_photo(card, x, y):
    """Where a share of a card's photo lies on the screen."""
    photo = card.locator(".photo").bounding_box()
    return photo["x"] + x * photo["width"], photo["y"] + y * photo["height"]


def test_a_missed_face_is_drawn_with_the_mouse(page, photos):
    """What is drawn is shown, covered where it cannot be swapped, and gone when it is removed."""
    consent(page)
    card = saved(choose(page, photos["small"]))

    def draw(left, top, right, bottom):
        page.mouse.move(*on_photo(card, left, top))
        page.mouse.down()
        page.mouse.move(*on_photo(card, right, bottom), steps=3)
        page.mouse.up()

    boxes = card.locator(".boxes .box")
    card.get_by_role("group", name="Face 1").get_by_role("radio", name="Cover").check()
    draw(0.86, 0.7, 0.96, 0.9)  # nothing, as long as the panel is shut
    card.get_by_role("button", name="Mark a missed face").click()
    draw(0.96, 0.9, 0.86, 0.7)  # from any corner
    expect(card.get_by_text("Face 3 was added: it will be covered.")).to_be_visible()
    expect(card.get_by_role("heading", name="2 faces found, 1 marked by you")).to_be_visible()
    expect(card.get_by_role("group", name="Face 3, marked by you").get_by_role("radio", name="Cover")).to_be_checked()
    place, (x, y) = boxes.nth(2).bounding_box(), on_photo(card, 0.91, 0.8)
    assert place["x"] + place["width"] / 2 == pytest.approx(x, abs=3)
    assert place["y"] + place["height"] / 2 == pytest.approx(y, abs=3)
    draw(0.12, 0.12, 0.3, 0.6)  # over the face that was found
    expect(card.get_by_text("There is a face in this place already.")).to_be_visible()
    draw(0.6, 0.02, 0.68, 0.12)
    expect(card.get_by_role("group", name="Face 4, marked by you")).to_be_visible()
    card.get_by_role("group", name="Face 3, marked by you").get_by_role("button", name="Remove this box").click()
    expect(boxes).to_have_count(3)
    expect(card.get_by_role("button", name="Mark a missed face")).to_be_focused()
    expect(card.get_by_role("group", name="Face 1").get_by_role("radio", name="Cover")).to_be_checked()  # still

    card.get_by_role("button", name="Cover 3 faces").click()
    expect(card.get_by_role("heading", name="3 covered")).to_be_focused()
    name = name_of(page, card)
    change = np.abs(pixels(page, f"{name}/after") - pixels(page, f"{name}/before?format=png")).max(axis=2)
    assert (change[10:36, 450:500] > 0).mean() > 0.9  # what was drawn
    assert not change[240:, 640:].any()  # what was removed


def test_a_missed_face_is_drawn_with_a_finger(browser, site, photos):
    """Where nobody was found the photo waits for a box at once; the page does not scroll under the finger."""
    phone = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
    with watched_page(browser, site, **phone) as page:
        consent(page)
        card = saved(choose(page, photos["nobody"]))
        expect(card.get_by_role("heading", name="No face found")).to_be_visible()
        expect(card.get_by_text("If you see somebody, mark the face.")).to_be_visible()
        expect(card.get_by_role("button", name=re.compile("^(Swap|Cover|Anonymise)"))).to_have_count(0)
        card.locator(".photo").scroll_into_view_if_needed()
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        before = page.evaluate("scrollY")
        session = page.context.new_cdp_session(page)
        for kind, place in (("Start", (0.3, 0.3)), ("Move", (0.4, 0.6)), ("Move", (0.6, 0.8)), ("End", None)):
            points = [] if place is None else [dict(zip("xy", on_photo(card, *place), strict=True))]
            session.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
        session.detach()
        expect(card.get_by_role("group", name="Face 1, marked by you")).to_be_visible()
        assert page.evaluate("scrollY") == before
        card.get_by_role("button", name="Cover 1 face").click()
        expect(card.get_by_role("heading", name="0 faces swapped, 1 covered")).to_be_visible()


def test_another_persona_is_one_button(page, photos, monkeypatch):
    """Offered where a swap did not do, and for that face alone; what it does not change stays covered."""
    judged, refused = judgement.judged, {1}

    def strict(face, *rest):
        return replace(judged(face, *rest), reason="still_recognised" if face.index in refused else None)

    monkeypatch.setattr(judgement, "judged", strict)
    consent(page)
    card = swapped(saved(choose(page, photos["two"])))
    expect(card.get_by_role("heading", name="1 face swapped, 1 covered")).to_be_focused()
    expect(card.get_by_text("Covered: a recogniser still matched its swap.")).to_be_visible()
    expect(
        card.get_by_text("Face 2 is covered: the personas that were tried did not change it enough.")
    ).to_be_visible()
    refused = {0}  # the face that is tried is alone now
    button = card.get_by_role("button", name="Try another persona")
    with page.expect_response(re.compile("/again$")):
        button.click()
    expect(card.get_by_role("heading", name="1 face swapped, 1 covered")).to_be_focused()
    expect(
        card.get_by_text("Face 2 stays covered: the other personas did not change it enough either.")
    ).to_be_visible()
    refused = set()
    button.click()
    expect(card.get_by_role("heading", name="2 faces swapped")).to_be_focused()
    expect(button).to_be_hidden()
    assert refused == set()


def test_folder_and_size_are_refused_before_anything_is_sent(page, photos, tmp_path):
    sent = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    (tmp_path / "holidays").mkdir()
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(20 * 2**20 + 1)
    consent(page)
    drop(page, tmp_path / "holidays", tmp_path / "huge.jpg")
    expect(page.locator(".card").first.get_by_role("alert")).to_contain_text("is it a folder")
    expect(page.locator(".card").last.get_by_role("alert")).to_contain_text("larger than 20 MB")
    assert not sent


def test_a_limit_that_is_far_away_and_a_server_that_is_down(browser, tiny_server, photos):
    with ExitStack() as stack:
        with web_server(tiny_server.grpc_url, rate="1/hour") as url:
            page = stack.enter_context(watched_page(browser, f"{url}/"))
            asked = []
            page.on("request", lambda request: asked.append(request.url) if request.method == "POST" else None)
            consent(page)
            refused = choose(page, photos["one"], photos["two"])
            kept = saved(page.locator(".card").first)
            pause = re.compile(r"You can try again in \d+ minutes\.$")
            expect(refused.get_by_role("alert")).to_have_text(pause)
            refused.get_by_role("button", name="Try again").click()
            expect(refused.get_by_role("alert")).to_have_text(pause)
            assert len(asked) == 3
        refused.get_by_role("button", name="Try again").click()
        expect(refused.get_by_role("alert")).to_contain_text("This page’s server does not answer.")
        kept.get_by_role("button", name="Swap 1 face").click()
        expect(kept.get_by_role("alert")).to_contain_text("This page’s server does not answer.")
        expect(kept.get_by_role("button", name="Swap 1 face")).to_be_focused()  # the choices are still there
        page.get_by_role("button", name="Forget everything").click()
        expect(page.locator("#refusal")).to_contain_text("may still be in its memory")
        expect(page.locator(".card")).to_have_count(2)


def limited(status, error):
    """A route that refuses the first request with a pause of a second, and lets the others through."""
    refused = []

    def route(route):
        if refused:
            route.fallback()
        else:
            refused.append(route.request.url)
            problem = {"status": status, "error": error, "detail": "wait"}
            route.fulfill(status=status, headers={"Retry-After": "1"}, json=problem)

    return route


def test_all_photos_at_once(page, photos, tmp_path):
    """Sent and swapped in turn, also where the server takes no more; one file of all, under their own names."""
    (tmp_path / "one.png").write_bytes(photos["two"].read_bytes())  # another photo of the same name
    page.route(re.compile("/page/photos$"), limited(429, "TooManyRequests"))
    page.route(re.compile("/anonymize$"), limited(503, "Overloaded"))
    page.evaluate(
        """() => {
          window.said = [];
          const places = "[data-part=doing], #all-state";
          const note = () => document.querySelectorAll(places).forEach((place) => said.push(place.textContent));
          new MutationObserver(note).observe(document.body, { subtree: true, childList: true, characterData: true });
        }"""
    )
    consent(page)
    everything = page.get_by_role("region", name="5 photos")
    choose(page, photos["one"], tmp_path / "one.png", photos["nobody"], photos["moving"], photos["two"])
    expect(page.get_by_role("heading", name="one.png").first).to_be_focused()
    everything.get_by_role("button", name="Swap all").click()
    expect(everything).to_contain_text("3 ready to download, 1 without a face (look at it), 1 that did not work")
    expect(page.get_by_role("status")).to_have_text(re.compile("^5 photos: 3 ready to download"))
    pause = "The server takes no more for the moment. It goes on by itself in 1 second."
    before_and_after = page.evaluate("[...new Set(said)]")
    assert pause in before_and_after
    assert any(text.endswith(f" to be sent. {pause}") for text in before_and_after)
    assert {"Sending the photo…", "Anonymising the photo…"} <= set(before_and_after)
    expect(everything.get_by_role("progressbar")).to_have_js_property("value", 9)  # of 10: one waits for a box
    expect(everything.get_by_role("button", name="Swap all")).to_be_disabled()
    with page.expect_download() as download:
        everything.get_by_role("button", name="Download 3 photos as a ZIP").click()
    assert download.value.suggested_filename == "anonymized.zip"
    with zipfile.ZipFile(download.value.path()) as together:
        assert together.testzip() is None
        assert together.namelist() == ["one.jpg", "one (2).jpg", "two.jpg"]
        sizes = [Image.open(together.open(name)).size for name in together.namelist()]
    assert sizes == [(370, 330), (740, 330), (740, 330)]

    # Forgotten by mistake: back in its place, with the choices, though the server had to be sent it again.
    second = page.locator(".card").nth(1)
    second.get_by_role("button", name="Change the choices").click()
    second.get_by_role("group", name="Face 2").get_by_role("radio", name="To male").check()
    before = name_of(page, second)
    second.get_by_role("button", name="Forget this photo").click()
    expect(page.locator(".card")).to_have_count(4)
    expect(page.get_by_text("one.png was forgotten: the server keeps no copy.").last).to_be_visible()
    assert page.request.get(f"{before}/before").status == 404
    page.get_by_role("button", name="Undo").click()
    expect(second.get_by_role("heading", name="one.png")).to_be_focused()
    saved(second)
    assert name_of(page, second) != before
    expect(second.get_by_role("group", name="Face 2").get_by_role("radio", name="To male")).to_be_checked()
    expect(page.get_by_role("button", name="Undo")).to_be_hidden()


def test_models_down(browser, photos):
    with web_server("127.0.0.1:9") as url, watched_page(browser, f"{url}/") as page:
        consent(page)
        card = choose(page, photos["one"])
        expect(card.get_by_role("alert")).to_have_text(
            re.compile(r"The server with the models cannot be reached: .* You can try again in \d+ seconds\.")
        )
        expect(card.get_by_role("button", name="Try again")).to_be_visible()


def test_forgotten_photo_is_explained_and_sent_again(page, photos):
    consent(page)
    card = saved(choose(page, photos["one"]))
    assert page.request.delete(name_of(page, card)).status == 204
    card.get_by_role("button", name="Swap 1 face").click()
    expect(card.get_by_role("alert")).to_contain_text("This photo is not here any more")
    expect(card.get_by_role("alert")).to_contain_text("Photos are kept for at most 5 minutes")
    card.get_by_role("button", name="Send it again").click()
    saved(card)
    swapped(card)


def test_forget(page, photos):
    consent(page)
    choose(page, photos["one"], photos["two"], photos["small"])
    cards = page.locator(".card")
    names = [name_of(page, saved(card)) for card in cards.all()]
    swapped(cards.first)
    cards.nth(1).get_by_role("button", name="Forget this photo").click()
    expect(cards).to_have_count(2)
    assert [page.request.get(f"{name}/before").status for name in names] == [200, 404, 200]
    page.get_by_role("button", name="Forget everything").click()
    expect(cards).to_have_count(0)
    expect(page.get_by_role("status")).to_have_text(re.compile("^3 photos were forgotten: the server keeps no copy"))
    expect(page.get_by_role("button", name="Undo")).to_be_focused()
    expect(page.get_by_role("button", name="Forget everything")).to_be_hidden()
    assert [page.request.get(f"{name}/before").status for name in names] == [404, 404, 404]
    saved(choose(page, photos["one"]))


def test_photo_forgotten_while_it_is_under_way_is_not_kept(page, photos):
    """Removed once it has been sent and before the server has said its name."""
    consent(page)
    page.evaluate(
        """() => new MutationObserver((_, observer) => {
          const card = document.querySelector(".card");
          if (!card?.textContent.includes("Looking for faces…")) return;
          observer.disconnect();
          card.querySelector("[data-part=forget]").click();
        }).observe(document.body, { subtree: true, childList: true })"""
    )
    with page.expect_response(lambda answer: answer.request.method == "DELETE") as forgotten:
        choose(page, photos["one"])
    assert forgotten.value.status == 204
    assert page.request.get(f"{forgotten.value.url}/before").status == 404
    expect(page.locator(".card")).to_have_count(0)


def test_closing_the_page_is_forgetting(page, photos, site):
    consent(page)
    name = name_of(page, saved(choose(page, photos["one"])))
    assert page.request.get(f"{name}/before").ok
    page.goto(f"{site}healthz")
    for _ in range(600):
        if page.request.get(f"{name}/before").status == 404:
            return
        page.wait_for_timeout(100)
    raise AssertionError("the photo is still there")


def test_neither_name_nor_metadata_goes_far(page, photos):
    consent(page)
    page.evaluate(
        """() => {
          const send = XMLHttpRequest.prototype.send;
          XMLHttpRequest.prototype.send = function (form) {
            window.sent = [...form].map(([field, value]) => [field, value.name ?? value]);
            send.call(this, form);
          };
        }"""
    )
    card = swapped(saved(choose(page, photos[SECRET])))
    assert page.evaluate("sent") == [["consent", "yes"], ["photo", "photo"]]  # not the file's name
    for button, format_ in (("Download JPEG", "JPEG"), ("PNG", "PNG"), ("WebP", "WEBP")):
        with page.expect_download() as download:
            card.get_by_role("button", name=button, exact=True).click()
        assert download.value.suggested_filename == f"anonymized.{'jpg' if format_ == 'JPEG' else format_.lower()}"
        data = download.value.path().read_bytes()
        image = Image.open(BytesIO(data))
        image.load()
        assert image.format == format_
        assert image.size == (370, 330)  # upright
        assert not image.getexif()
        assert not {"comment", "exif", "icc_profile"} & set(image.info)
        assert SECRET.encode() not in data
        assert b"compositeWithTrainedAlgorithmicMedia" in data
    head = np.asarray(Image.open(photos["one"]).convert("RGB"), np.int16)
    change = np.abs(pixels(page, f"{name_of(page, card)}/after") - head)
    assert change[:30].mean() < 5  # upright: what is above the hair is where it was, but for the JPEG that it came as
    assert change.max() > 50


def test_keyboard_alone(page, photos):
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to upload")).to_be_focused()
    page.keyboard.press("Enter")
    tab_to(page, "I may use these photos")
    page.keyboard.press("Space")
    tab_to(page, UPLOAD)
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(photos["two"])
    card = saved(page.locator(".card"))
    tab_to(page, "Mark a missed face")
    page.keyboard.press("Enter")
    tab_to(page, "From the left")
    page.keyboard.press("Home")
    tab_to(page, "From the top")
    page.keyboard.press("End")
    expect(card.get_by_label("From the top")).to_have_attribute("aria-valuetext", "75 % of the photo")  # and no lower
    page.keyboard.press("PageDown")
    tab_to(page, "Width")
    page.keyboard.press("ArrowLeft")
    expect(card.locator(".sketch > div")).to_be_visible()
    page.keyboard.press("Enter")  # adds the box and does not anonymise yet
    marked = card.get_by_role("group", name="Face 3, marked by you")
    expect(marked).to_be_visible()
    tab_to(page, "Done")
    page.keyboard.press("Enter")
    expect(card.get_by_role("button", name="Mark a missed face")).to_be_focused()
    expect(card.locator(".sketch")).to_be_hidden()
    tab_to(page, "Remove this box")
    page.keyboard.press("Enter")
    expect(marked).to_have_count(0)
    expect(card.get_by_role("button", name="Mark a missed face")).to_be_focused()
    tab_to(page, "Opposite")
    page.keyboard.press("ArrowDown")
    expect(card.get_by_role("group", name="Face 1").get_by_role("radio", name="To male")).to_be_checked()
    tab_to(page, "Opposite")
    page.keyboard.press("ArrowUp")
    expect(card.get_by_role("group", name="Face 2").get_by_role("radio", name="Leave visible")).to_be_checked()
    tab_to(page, "Swap 1 face")
    page.keyboard.press("Enter")
    expect(card.get_by_role("heading", name="1 face swapped, 1 left visible")).to_be_focused()
    tab_to(page, "Compare", back=True)
    page.keyboard.press("ArrowRight")
    expect(card.get_by_role("slider")).to_have_value("51")
    tab_to(page, "Download JPEG")
    with page.expect_download():
        page.keyboard.press("Enter")
    tab_to(page, "Forget everything", back=True)
    page.keyboard.press("Enter")
    expect(page.locator(".card")).to_have_count(0)
    expect(page.get_by_role("button", name="Undo")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="two.webp")).to_be_focused()
    expect(saved(page.locator(".card")).get_by_role("radio", name="Leave visible").last).to_be_checked()


def test_narrow_phone(browser, site, photos, tmp_path):
    """Nothing is wider than 360 pixels, not even a file's name without a blank."""
    long = tmp_path / f"{'IMG20261125' * 12}.webp"
    long.write_bytes(photos["two"].read_bytes())
    phone = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}

    def fits(page):
        width = "document.documentElement.scrollWidth"
        assert page.evaluate(width) == 360
        beyond = page.evaluate(
            """() => [...document.querySelectorAll("main *:not(.photo *)")]
              .filter((element) => element.checkVisibility() && element.getBoundingClientRect().right > 360.5)
              .map((element) => element.outerHTML.slice(0, 80))"""
        )
        assert not beyond

    with watched_page(browser, site, **phone) as page:
        fits(page)
        consent(page)
        card = saved(choose(page, long))
        card.get_by_role("group", name="Face 2").get_by_role("radio", name="Leave visible").check()
        fits(page)
        swapped(card)
        fits(page)
        for control in card.get_by_role("button").all():
            assert control.bounding_box()["height"] >= 32
        choose(page, photos["moving"])
        expect(page.locator(".card").last.get_by_role("alert")).to_be_visible()
        fits(page)


def test_page_says_what_the_server_says_of_itself(page):
    expect(page.locator("#drop-hint")).to_contain_text(
        "JPG, JPEG, PNG, WEBP, AVIF or HEIC, up to 20 MB and 50 megapixels"
    )
    expect(page.locator("#kept")).to_contain_text("at most 5 minutes")
    expect(page.get_by_role("region", name="Do not rely on this server")).to_be_hidden()

    def untrained(route):
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "untrained": ["generator_to_male"]})

    page.route("**/page/about", untrained)
    page.reload()
    warning = page.get_by_role("region", name="Do not rely on this server: its models are untrained")
    expect(warning).to_contain_text("generator_to_male")
    expect(warning).to_be_in_viewport()


def test_the_page_speaks_german(browser, site, photos):
    with watched_page(browser, site, locale="de-CH") as page:
        expect(page.locator("html")).to_have_attribute("lang", "de")
        expect(page.get_by_role("heading", level=1)).to_have_text("Das Foto bleibt. Die Gesichter ändern sich.")
        expect(page.locator("#kept")).to_contain_text("bleiben höchstens 5 Minuten im Arbeitsspeicher")
        page.get_by_label("Ich darf diese Fotos verwenden").check()
        page.locator("#files").set_input_files([photos["two"], photos["moving"]])
        card = page.locator(".card").first
        expect(card.get_by_text("Bild im Arbeitsspeicher, nicht auf der Festplatte")).to_be_visible()
        expect(card.get_by_role("group", name="Gesicht 1")).to_have_accessible_description(
            re.compile(r"Scheinbares Geschlecht: (weib|männ)lich, zu \d\d\s% sicher")
        )
        card.get_by_role("group", name="Gesicht 2").get_by_role("radio", name="Sichtbar lassen").check()
        card.get_by_role("button", name="1 Gesicht ersetzen").click()
        expect(card.get_by_role("heading", name=re.compile("^1 Gesicht ersetzt.+1 sichtbar gelassen$"))).to_be_visible()
        expect(card.get_by_text(re.compile(r"Ähnlichkeit \d+,\d\s%, Pixel-Kosinus -?\d,\d\d\."))).to_be_visible()
        expect(page.locator(".card").last.get_by_role("alert")).to_have_text(
            "Dieses Format wird nicht gelesen. Wählen Sie ein stehendes Bild als JPEG, PNG, WebP, AVIF oder HEIC."
        )
        expect(page.locator("#all-state")).to_have_text(re.compile("^1 fertig.+1 fehlgeschlagen$"))


def test_the_description_of_the_api_is_accessible(page, site):
    page.get_by_role("link", name="a REST API").click()
    expect(page.get_by_role("heading", name="REST API", level=1)).to_be_visible()
    page.set_viewport_size({"width": 320, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    assert page.evaluate("document.styleSheets.length") == 2
    report = Axe().run(page)
    assert not report.violations_count, report.generate_report()


def test_no_accessibility_violation(page, photos, monkeypatch):
    """By axe-core, with all its rules in the light and those on colours again in the dark."""

    def accessible(state):
        for scheme, rules in {"light": {}, "dark": {"runOnly": ["color-contrast"]}}.items():
            page.emulate_media(color_scheme=scheme)
            report = Axe().run(page, options={"resultTypes": ["violations"], **rules})
            assert not report.violations_count, f"{state}, {scheme}: {report.generate_report()}"

    page.emulate_media(reduced_motion="reduce")  # a colour halfway through a transition is nobody's choice
    accessible("empty")
    choose(page, photos["small"])
    expect(page.locator("#waiting")).to_be_visible()
    accessible("held")
    consent(page)
    card = saved(page.locator(".card"))
    accessible("faces")
    card.get_by_role("button", name="Mark a missed face").click()
    card.get_by_label("From the left").press("End")
    card.get_by_role("button", name="Add this box").click()
    expect(card.get_by_role("group", name="Face 3, marked by you")).to_be_visible()
    accessible("a face marked by hand")
    animation = "getComputedStyle(document.querySelector('.card progress')).animationName"
    assert page.evaluate(animation) == "none"
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(animation) == "passing"
    page.emulate_media(reduced_motion="reduce")
    judged = judgement.judged
    monkeypatch.setattr(judgement, "judged", lambda *faces: replace(judged(*faces), reason="not_flipped"))
    card.get_by_role("button", name=re.compile("^Swap")).click()
    expect(card.get_by_role("button", name="Try another persona")).to_be_visible()
    accessible("result with a remedy")
    monkeypatch.undo()
    card.get_by_role("button", name="Try another persona").click()
    expect(card.get_by_role("heading", name="1 face swapped")).to_be_visible()
    accessible("result")
    expect(choose(page, photos["moving"]).get_by_role("alert")).to_be_visible()
    accessible("error, and two photos together")
    page.locator(".card").last.get_by_role("button", name="Remove").click()
    expect(page.get_by_role("button", name="Undo")).to_be_focused()
    accessible("something that can be undone")
    page.get_by_role("button", name="Use the camera").click()
    expect(page.get_by_role("button", name="Take the photo")).to_be_focused()
    accessible("camera")
