//! What the demo trades: sectors, symbols and the price each starts from.
//!
//! Owns only constants; any thread may read them. `demo.html` holds the same
//! table in its own notation, and `tests/tidy.rs` fails when the two differ.
//! The prices are invented: round figures for a feed that walks at random.

/// `(sector, [(symbol, price at the start)])`. The sector's channel is
/// `demo:<sector>`; a symbol appears once in the whole table.
#[rustfmt::skip]
pub const SECTORS: &[(&str, &[(&str, f64)])] = &[
    ("crypto", &[
        ("BTC", 96500.0), ("ETH", 3400.0), ("SOL", 190.0), ("XRP", 2.2), ("BNB", 640.0),
        ("DOGE", 0.32), ("ADA", 0.92), ("TRX", 0.26), ("AVAX", 38.0), ("LINK", 21.0),
        ("DOT", 7.1), ("LTC", 105.0), ("BCH", 450.0), ("NEAR", 5.2), ("UNI", 12.5),
        ("APT", 9.1), ("ICP", 10.4), ("ETC", 26.0), ("XLM", 0.36), ("ATOM", 6.9),
        ("FIL", 5.1), ("HBAR", 0.27), ("ARB", 0.75), ("OP", 1.9), ("INJ", 21.5),
        ("AAVE", 310.0), ("ALGO", 0.33), ("GRT", 0.21), ("SUI", 4.1), ("MKR", 1550.0),
    ]),
    ("tech", &[
        ("AAPL", 228.0), ("MSFT", 417.0), ("NVDA", 138.0), ("GOOGL", 176.0), ("META", 585.0),
        ("AVGO", 172.0), ("ORCL", 188.0), ("CRM", 330.0), ("ADBE", 510.0), ("AMD", 138.0),
        ("INTC", 24.5), ("CSCO", 58.0), ("QCOM", 160.0), ("TXN", 201.0), ("IBM", 224.0),
        ("NOW", 1045.0), ("INTU", 640.0), ("AMAT", 175.0), ("MU", 102.0), ("LRCX", 74.0),
        ("ADI", 217.0), ("KLAC", 640.0), ("SNPS", 555.0), ("CDNS", 305.0), ("PANW", 392.0),
        ("CRWD", 360.0), ("FTNT", 94.0), ("NET", 104.0), ("DDOG", 152.0), ("SHOP", 108.0),
    ]),
    ("finance", &[
        ("JPM", 245.0), ("BAC", 46.0), ("WFC", 75.0), ("C", 69.0), ("GS", 595.0),
        ("MS", 132.0), ("SCHW", 81.0), ("BLK", 1035.0), ("AXP", 295.0), ("V", 310.0),
        ("MA", 525.0), ("PYPL", 86.0), ("SPGI", 505.0), ("MCO", 480.0), ("ICE", 158.0),
        ("CME", 232.0), ("CB", 284.0), ("PGR", 262.0), ("TRV", 260.0), ("AIG", 76.0),
        ("MET", 86.0), ("PRU", 127.0), ("USB", 52.0), ("PNC", 208.0), ("TFC", 47.0),
        ("COF", 188.0), ("BK", 80.0), ("STT", 97.0), ("ALL", 202.0), ("AFL", 112.0),
    ]),
    ("energy", &[
        ("XOM", 120.0), ("CVX", 161.0), ("COP", 110.0), ("EOG", 135.0), ("SLB", 43.0),
        ("OXY", 51.0), ("PSX", 133.0), ("VLO", 142.0), ("MPC", 158.0), ("HES", 147.0),
        ("KMI", 28.0), ("WMB", 59.0), ("OKE", 113.0), ("HAL", 31.0), ("BKR", 44.0),
        ("DVN", 38.0), ("FANG", 179.0), ("CTRA", 27.0), ("TRGP", 204.0), ("APA", 22.5),
        ("EQT", 46.0), ("NEE", 77.0), ("DUK", 114.0), ("SO", 88.0), ("D", 58.0),
        ("AEP", 98.0), ("EXC", 39.0), ("SRE", 93.0), ("XEL", 72.0), ("ED", 98.5),
    ]),
    ("health", &[
        ("LLY", 770.0), ("UNH", 600.0), ("JNJ", 155.0), ("MRK", 99.0), ("ABBV", 177.0),
        ("TMO", 522.0), ("ABT", 117.0), ("DHR", 238.0), ("PFE", 25.5), ("AMGN", 290.0),
        ("ISRG", 542.0), ("SYK", 390.0), ("BSX", 90.0), ("MDT", 87.0), ("GILD", 91.0),
        ("VRTX", 455.0), ("REGN", 745.0), ("ZTS", 176.0), ("BDX", 224.0), ("CI", 325.0),
        ("CVS", 58.5), ("HCA", 330.0), ("ELV", 404.0), ("MCK", 624.0), ("HUM", 296.0),
        ("MRNA", 41.0), ("BIIB", 159.0), ("EW", 71.0), ("IDXX", 421.0), ("DXCM", 77.0),
    ]),
    ("consumer", &[
        ("AMZN", 202.0), ("TSLA", 338.0), ("HD", 408.0), ("MCD", 292.0), ("NKE", 77.0),
        ("SBUX", 99.0), ("LOW", 268.0), ("TJX", 121.0), ("BKNG", 5150.0), ("CMG", 61.0),
        ("ORLY", 1210.0), ("AZO", 3120.0), ("ROST", 146.0), ("MAR", 284.0), ("HLT", 252.0),
        ("F", 11.2), ("GM", 57.0), ("WMT", 88.0), ("COST", 960.0), ("PG", 176.0),
        ("KO", 63.5), ("PEP", 160.0), ("PM", 130.0), ("MO", 56.0), ("MDLZ", 64.0),
        ("CL", 95.0), ("KMB", 138.0), ("GIS", 65.0), ("KR", 58.5), ("TGT", 128.0),
    ]),
    ("industry", &[
        ("CAT", 395.0), ("DE", 438.0), ("HON", 228.0), ("GE", 180.0), ("BA", 149.0),
        ("LMT", 530.0), ("RTX", 119.0), ("NOC", 495.0), ("GD", 280.0), ("UPS", 134.0),
        ("FDX", 300.0), ("UNP", 240.0), ("CSX", 36.0), ("NSC", 272.0), ("ETN", 372.0),
        ("EMR", 130.0), ("ITW", 275.0), ("PH", 700.0), ("ROK", 290.0), ("CMI", 370.0),
        ("PCAR", 115.0), ("WM", 224.0), ("RSG", 214.0), ("JCI", 84.0), ("CARR", 76.0),
        ("OTIS", 102.0), ("MMM", 130.5), ("DOV", 204.0), ("XYL", 125.0), ("FAST", 83.0),
    ]),
    ("media", &[
        ("NFLX", 897.0), ("DIS", 115.0), ("CMCSA", 43.0), ("T", 23.0), ("VZ", 43.5),
        ("TMUS", 240.0), ("CHTR", 393.0), ("WBD", 10.3), ("EA", 165.0), ("TTWO", 186.0),
        ("SPOT", 474.0), ("RBLX", 50.0), ("PINS", 30.5), ("SNAP", 11.6), ("MTCH", 32.0),
        ("LYV", 138.0), ("FOXA", 46.0), ("NWSA", 29.0), ("OMC", 103.0), ("IPG", 30.0),
        ("ROKU", 69.0), ("UBER", 71.0), ("ABNB", 135.0), ("DASH", 176.0), ("LYFT", 17.2),
        ("EBAY", 62.0), ("ETSY", 52.0), ("ZM", 79.0), ("TWLO", 103.5), ("DBX", 27.5),
    ]),
    ("fx", &[
        ("EURUSD", 1.0542), ("GBPUSD", 1.2631), ("USDJPY", 154.2), ("USDCHF", 0.8871), ("AUDUSD", 0.6502),
        ("NZDUSD", 0.5861), ("USDCAD", 1.3978), ("EURGBP", 0.8346), ("EURJPY", 162.6), ("GBPJPY", 194.8),
        ("EURCHF", 0.9352), ("AUDJPY", 100.3), ("USDSEK", 11.02), ("USDNOK", 11.08), ("USDDKK", 7.074),
        ("USDPLN", 4.108), ("USDHUF", 390.4), ("USDCZK", 24.02), ("USDMXN", 20.4), ("USDZAR", 18.1),
        ("USDTRY", 34.5), ("USDSGD", 1.3441), ("USDHKD", 7.783), ("USDCNH", 7.248), ("USDINR", 84.4),
        ("USDKRW", 1398.0), ("USDTHB", 34.7), ("USDBRL", 5.81), ("EURSEK", 11.61), ("EURNOK", 11.67),
    ]),
    ("commodities", &[
        ("GOLD", 2665.0), ("SILVER", 31.2), ("PLAT", 963.0), ("PALL", 1012.0), ("COPPER", 4.09),
        ("BRENT", 74.2), ("WTI", 70.1), ("NATGAS", 3.12), ("GASOIL", 684.0), ("RBOB", 2.04),
        ("ALU", 2630.0), ("ZINC", 2985.0), ("NICKEL", 15900.0), ("LEAD", 2010.0), ("TIN", 28900.0),
        ("IRON", 101.0), ("COAL", 142.0), ("URAN", 77.5), ("LITH", 10.8), ("WHEAT", 565.0),
        ("CORN", 425.0), ("SOY", 983.0), ("OATS", 362.0), ("RICE", 15.2), ("COFFEE", 302.0),
        ("COCOA", 8740.0), ("SUGAR", 21.4), ("COTTON", 70.8), ("CATTLE", 188.0), ("HOGS", 81.0),
    ]),
];
