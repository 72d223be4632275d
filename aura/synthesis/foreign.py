"""Sentences of our own in languages other than English, and who speaks them: voices of espeak-ng.

Languages and throats of the training part are not those of the test part. Japanese is in kana and
Chinese in pinyin with tones, since espeak-ng spells characters that it does not know in English.
"""

from __future__ import annotations

from collections.abc import Mapping

THROATS: Mapping[str, tuple[str, ...]] = {
    "train": ("", "+m1", "+m3", "+f2", "+f4"),
    "test": ("+m5", "+m7", "+f1", "+f3", "+f5"),
}
ESPEAK_NAMES = {"fr": "fr-fr", "zh": "cmn-latn-pinyin"}  # where they differ from the two letters

SENTENCES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "train": {
        "de": (
            "Morgen früh gehen wir an den Fluss.",
            "Der Kuchen steht schon auf dem Tisch.",
            "Kannst du bitte das Fenster schließen?",
            "Ich habe meinen Schlüssel verloren.",
            "Heute Abend kommen meine Großeltern zu Besuch.",
            "Vor dem Haus wachsen drei alte Bäume.",
            "Das Wasser ist noch zu kalt.",
            "Guten Morgen!",
        ),
        "fr": (
            "Le chat dort sous la vieille table.",
            "Nous partons demain avant le lever du soleil.",
            "Où as-tu rangé les assiettes ?",
            "Il pleut depuis trois jours.",
            "Ma sœur apprend à jouer du violon.",
            "Les enfants cherchent des coquillages sur la plage.",
            "Je voudrais deux pommes et un peu de fromage.",
            "Bonne nuit !",
        ),
        "es": (
            "La ventana de la cocina está abierta.",
            "Mañana vamos a plantar tomates en el huerto.",
            "¿Dónde dejaste el paraguas?",
            "El río baja lleno después de la lluvia.",
            "Mi abuelo cuenta historias de pescadores.",
            "Hace mucho frío esta tarde.",
            "Necesito cinco huevos y un kilo de harina.",
            "Buenos días.",
        ),
        "it": (
            "Il treno parte tra dieci minuti.",
            "La nonna prepara la minestra di verdure.",
            "Hai visto i miei occhiali?",
            "Domani andiamo a raccogliere le castagne.",
            "Il gatto guarda gli uccelli dalla finestra.",
            "Oggi il mare è molto calmo.",
            "Vorrei un bicchiere di acqua fresca.",
            "Buona sera.",
        ),
        "pl": (
            "Jutro rano jedziemy nad jezioro.",
            "Na stole leży świeży chleb.",
            "Gdzie jest moja niebieska czapka?",
            "Wczoraj cały dzień padał śnieg.",
            "Moja siostra lubi zbierać grzyby.",
            "Pies śpi przed domem.",
            "Poproszę trzy jabłka i jedną gruszkę.",
            "Dobry wieczór.",
        ),
        "ru": (
            "Завтра утром мы поедем на озеро.",
            "На столе стоит горячий чай.",
            "Где ты оставил мой зонт?",
            "Вчера весь день шёл снег.",
            "Моя бабушка печёт вкусные пироги.",
            "Собака спит возле двери.",
            "Дети играют во дворе.",
            "Доброе утро.",
        ),
        "tr": (
            "Yarın sabah göle gidiyoruz.",
            "Masanın üstünde taze ekmek var.",
            "Anahtarımı nereye koydun?",
            "Dün bütün gün kar yağdı.",
            "Annem bahçede çiçek suluyor.",
            "Köpek kapının önünde uyuyor.",
            "İki elma ve biraz peynir istiyorum.",
            "Günaydın.",
        ),
        "zh": (
            "ming2 tian1 zao3 shang4 wo3 men5 qu4 hu2 bian1 san4 bu4.",
            "zhuo1 zi5 shang4 you3 yi4 bei1 re4 cha2.",
            "wo3 de5 yu3 san3 zai4 na3 li3?",
            "zuo2 tian1 xia4 le5 yi4 tian1 de5 xue3.",
            "ma1 ma5 zai4 chu2 fang2 li3 zuo4 fan4.",
            "xiao3 gou3 zai4 men2 kou3 shui4 jiao4.",
            "wo3 xiang3 mai3 san1 ge4 ping2 guo3.",
            "zao3 shang4 hao3.",
        ),
        "hi": (
            "कल सुबह हम नदी के किनारे जाएँगे।",
            "मेज़ पर गरम चाय रखी है।",
            "मेरा छाता कहाँ है?",
            "आज बहुत तेज़ बारिश हो रही है।",
            "माँ रसोई में खाना बना रही है।",
            "कुत्ता दरवाज़े के पास सो रहा है।",
            "मुझे तीन सेब चाहिए।",
            "नमस्ते।",
        ),
        "nl": (
            "Morgenochtend gaan we naar het meer.",
            "De soep staat al op tafel.",
            "Waar heb je mijn paraplu gelaten?",
            "Gisteren heeft het de hele dag gesneeuwd.",
            "Mijn oma vertelt graag over vroeger.",
            "De kinderen spelen achter het huis.",
            "Ik wil graag twee peren en een stuk kaas.",
            "Goedenavond.",
        ),
    },
    "test": {
        "pt": (
            "Amanhã de manhã vamos à praia.",
            "O pão fresco está em cima da mesa.",
            "Onde deixaste o meu chapéu?",
            "Ontem choveu o dia inteiro.",
            "A minha avó gosta de contar histórias.",
            "O cão dorme perto da porta.",
            "Queria três laranjas, por favor.",
            "Boa noite.",
        ),
        "sv": (
            "I morgon bitti åker vi till sjön.",
            "Det nybakade brödet ligger på bordet.",
            "Var har du lagt mina nycklar?",
            "Igår snöade det hela dagen.",
            "Min mormor plockar blåbär i skogen.",
            "Hunden sover framför dörren.",
            "Jag skulle vilja ha två äpplen.",
            "God morgon.",
        ),
        "fi": (
            "Huomenna aamulla menemme järvelle.",
            "Pöydällä on tuoretta leipää.",
            "Missä minun avaimeni ovat?",
            "Eilen satoi lunta koko päivän.",
            "Isoäiti kertoo vanhoja tarinoita.",
            "Koira nukkuu oven edessä.",
            "Haluaisin kolme omenaa.",
            "Hyvää huomenta.",
        ),
        "cs": (
            "Zítra ráno pojedeme k jezeru.",
            "Na stole leží čerstvý chléb.",
            "Kde jsou moje klíče?",
            "Včera celý den sněžilo.",
            "Moje babička ráda sbírá houby.",
            "Pes spí přede dveřmi.",
            "Prosím tři jablka a jednu hrušku.",
            "Dobrý večer.",
        ),
        "ja": (
            "あしたのあさ、みずうみへいきます。",
            "つくえのうえに、あついおちゃがあります。",
            "わたしのかさは、どこですか。",
            "きのうは、いちにちじゅう、ゆきがふりました。",
            "ははは、だいどころで、りょうりをしています。",
            "いぬが、ドアのまえで、ねています。",
            "りんごを、みっつください。",
            "おはようございます。",
        ),
        "ko": (
            "내일 아침에 호수에 갑니다.",
            "책상 위에 따뜻한 차가 있어요.",
            "제 우산은 어디에 있나요?",
            "어제는 하루 종일 눈이 왔어요.",
            "어머니가 부엌에서 밥을 짓고 계세요.",
            "강아지가 문 앞에서 자고 있어요.",
            "사과 세 개 주세요.",
            "안녕하세요.",
        ),
        "el": (
            "Αύριο το πρωί θα πάμε στη λίμνη.",
            "Πάνω στο τραπέζι υπάρχει φρέσκο ψωμί.",
            "Πού είναι τα κλειδιά μου;",
            "Χθες χιόνιζε όλη την ημέρα.",
            "Η γιαγιά μου λέει παλιές ιστορίες.",
            "Ο σκύλος κοιμάται μπροστά στην πόρτα.",
            "Θα ήθελα τρία μήλα, παρακαλώ.",
            "Καλημέρα.",
        ),
        "hu": (
            "Holnap reggel a tóhoz megyünk.",
            "Az asztalon friss kenyér van.",
            "Hol vannak a kulcsaim?",
            "Tegnap egész nap esett a hó.",
            "A nagymamám szeret régi történeteket mesélni.",
            "A kutya az ajtó előtt alszik.",
            "Három almát kérek.",
            "Jó reggelt!",
        ),
        "id": (
            "Besok pagi kami pergi ke danau.",
            "Di atas meja ada teh hangat.",
            "Di mana payung saya?",
            "Kemarin hujan turun sepanjang hari.",
            "Nenek suka bercerita tentang masa kecilnya.",
            "Anjing itu tidur di depan pintu.",
            "Saya mau membeli tiga buah jeruk.",
            "Selamat pagi.",
        ),
        "vi": (
            "Sáng mai chúng tôi đi ra hồ.",
            "Trên bàn có một tách trà nóng.",
            "Cái ô của tôi ở đâu?",
            "Hôm qua trời mưa cả ngày.",
            "Mẹ đang nấu cơm trong bếp.",
            "Con chó ngủ trước cửa.",
            "Tôi muốn mua ba quả cam.",
            "Chào buổi sáng.",
        ),
    },
}


def line_of(split: str, number: int) -> tuple[str, str]:
    """(language, sentence) of a clip: languages in turn, and all sentences of each before one comes again."""
    languages = list(SENTENCES[split])
    turn, place = divmod(number, len(languages))
    sentences = SENTENCES[split][languages[place]]
    return languages[place], sentences[(turn + place) % len(sentences)]


def espeak_voice(language: str, throat: str) -> str:
    """Its name for espeak-ng."""
    return ESPEAK_NAMES.get(language, language) + throat


def espeak_voices(split: str) -> tuple[str, ...]:
    """All that may speak in that part."""
    return tuple(espeak_voice(language, throat) for language in SENTENCES[split] for throat in THROATS[split])
