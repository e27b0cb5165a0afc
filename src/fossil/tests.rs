use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// The patch, which makes the target of the base.
#[track_caller]
fn check(base: &str, target: &str) -> String {
    let patch = create(base, target);
    let applied = apply(base.as_bytes(), patch.as_bytes()).expect("a patch for this base");
    assert!(applied == target.as_bytes(), "{base:?} to {target:?} by {patch:?}");
    patch
}

#[test]
fn patches_as_others_write_them() {
    assert_eq!(check("", ""), "0\n0;");
    assert_eq!(check("", "abc"), "3\n3:abc1XObC0;");
    assert_eq!(check("0123456789", "0123456789"), "A\nA@0,2ScrXf;");
    let base = r#"{"symbol":"EURUSD","bid":1.0541,"ask":1.0543,"at":1700000000}"#;
    let target = base.replace("1.0541", "1.0542").replace("00}", "01}");
    // The first digit, what is alike behind it, and the last digit.
    assert_eq!(check(base, &target), "y\nU@0,1:2S@V,2:1}M_1Rq;");
}

#[test]
fn numbers_are_fossils_own() {
    let check = |number: u32, text: &str| {
        let mut out = String::new();
        put_number(&mut out, number);
        assert_eq!(out, text);
        assert_eq!(take_number(&mut out.as_bytes()), Ok(number as usize));
    };
    check(0, "0");
    check(10, "A");
    check(36, "_");
    check(63, "~");
    check(64, "10");
    check(u32::MAX, "3~~~~~");
}

#[test]
fn a_word_of_the_checksum_is_padded() {
    assert_eq!(checksum(b""), 0);
    assert_eq!(checksum(b"\x01"), 0x0100_0000);
    assert_eq!(checksum(b"\x01\x02\x03\x04\x05\x06\x07"), 0x0608_0A04);
    assert_eq!(checksum(&[0xFF; 8]), 0xFFFF_FFFE);
}

#[test]
fn what_moved_is_found() {
    let base: String = (0..500).map(|n| format!("line {n}, {}\n", n * n)).collect();
    let (first, second) = base.split_at(base.find("line 250,").unwrap());
    let patch = check(&base, &format!("{second}something new\n{first}"));
    assert!(patch.len() < 60, "{patch:?}");
}

#[test]
fn a_patch_splits_no_character() {
    // é is C3 A9, è C3 A8, © C2 A9.
    for (base, target) in [
        ("ééééééééééé", "éééééèééééé"),
        ("©©©©©©©©©©©", "©©©©©é©©©©©"),
        ("0123456789é0123456789", "0123456789è0123456789"),
        ("😀😀😀😀😀😀😀😀", "😀😀😀😁😀😀😀😀"),
        ("", "é"),
        ("é", "\u{a9}"),
    ] {
        check(base, target);
    }
    let base = "😀0123456789abcdef".repeat(40);
    let target: String = base.chars().rev().collect();
    check(&base, &target);
    check(&base, &base.replace("😀", "😁"));
}

#[test]
fn bad_patches_are_refused() {
    let base = b"0123456789abcdef";
    let good = create("0123456789abcdef", "0123456789-abcdef");
    assert_eq!(apply(base, good.as_bytes()).unwrap(), b"0123456789-abcdef");
    assert_eq!(apply(b"0123456789abcdeF", good.as_bytes()), Err(BadPatch::OtherBase));
    assert_eq!(apply(b"", good.as_bytes()), Err(BadPatch::OtherBase));
    for n in 0..good.len() {
        assert_eq!(apply(base, &good.as_bytes()[..n]), Err(BadPatch::Malformed), "{n}");
    }
    for bad in ["", "1", "1\n", "1\n2:ab", "1\n1:a1;2", "1\n1@0;0;", "1\n1!", "9~~~~~\n0;", "\n;"] {
        assert_eq!(apply(base, bad.as_bytes()), Err(BadPatch::Malformed), "{bad:?}");
    }
}

/// Of this thread, so that a busy machine fails no test.
fn cpu_time() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the struct is ours, and the call only writes it.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    assert_eq!(result, 0);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

#[test]
fn time_is_bounded_whatever_the_texts() {
    let n = 1 << 20;
    let zeros = "\0".repeat(n);
    let almost = format!("{}1{}", &zeros[..n / 2], &zeros[n / 2..]);
    // Every window is that of many blocks, and never more alike than that.
    let near: String = "0123456789abcdef".repeat(n / 16);
    let far: String = (0..n / 17).map(|i| format!("0123456789abcdef{}", i % 10)).collect();
    let other: String = "0123456789abcdeF".repeat(n / 16);
    for (base, target) in
        [(&zeros, &zeros), (&zeros, &almost), (&almost, &zeros), (&near, &far), (&near, &other)]
    {
        let began = cpu_time();
        check(base, target);
        check(target, base);
        let took = cpu_time() - began;
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
}

/// A text, and one made of its parts and of others.
fn edited(text: impl Strategy<Value = String>) -> impl Strategy<Value = (String, String)> {
    let cuts = prop::collection::vec((any::<prop::sample::Index>(), 0..40usize, ".{0,12}"), 0..8);
    (text, cuts).prop_map(|(base, cuts)| {
        let mut target: Vec<char> = base.chars().collect();
        for (at, n, new) in cuts {
            let at = at.index(target.len() + 1);
            let end = (at + n).min(target.len());
            target.splice(at..end, new.chars());
        }
        (base, target.into_iter().collect())
    })
}

proptest! {
    #[test]
    fn any_text_of_any_other((base, target) in (".{0,300}", ".{0,300}")) {
        check(&base, &target);
    }

    #[test]
    fn edited_texts((base, target) in edited(".{0,400}")) {
        check(&base, &target);
    }

    /// Few different characters: many blocks are alike.
    #[test]
    fn monotonous_texts((base, target) in edited("[aé😀]{0,400}")) {
        check(&base, &target);
    }

    #[test]
    fn edited_json(values in prop::collection::vec(any::<f64>(), 1..60), at in any::<prop::sample::Index>(), new: f64) {
        let to_text = |values: &[f64]| {
            let of = |(n, value): (usize, &f64)| serde_json::json!({ "id": n, "value": value });
            serde_json::Value::from_iter(values.iter().enumerate().map(of)).to_string()
        };
        let base = to_text(&values);
        let mut values = values;
        let at = at.index(values.len());
        values[at] = new;
        let patch = check(&base, &to_text(&values));
        prop_assert!(patch.len() < 80, "{} bytes", patch.len());
    }

    #[test]
    fn no_patch_panics(base in prop::collection::vec(any::<u8>(), 0..64), patch in "[0-9~]{0,3}\n?([0-9A]{0,6}[@:,;.]){0,6}") {
        let _ = apply(&base, patch.as_bytes());
    }
}
