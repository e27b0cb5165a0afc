//! Two things measured in turn: the one mechanism of every comparison.
//!
//! Machines drift, so a figure means something only beside another from the same minutes. Which of a
//! pair is first alternates: whatever the first does to the second, it does both ways.

use serde::Serialize;

use crate::report::median;

#[derive(Clone, Debug, Serialize)]
pub struct Pair<A, B> {
    pub a: A,
    pub b: B,
}

/// `a` and `b` are given what they share, and a label for lines of progress.
pub fn measure<C, A, B>(
    shared: &mut C,
    n_pairs: usize,
    mut a: impl FnMut(&mut C, &str) -> anyhow::Result<A>,
    mut b: impl FnMut(&mut C, &str) -> anyhow::Result<B>,
) -> anyhow::Result<Vec<Pair<A, B>>> {
    let mut pairs = Vec::with_capacity(n_pairs);
    for nth in 0..n_pairs {
        let label = format!("pair {} of {n_pairs}", nth + 1);
        pairs.push(if nth % 2 == 0 {
            let a = a(shared, &label)?;
            Pair { a, b: b(shared, &label)? }
        } else {
            let b = b(shared, &label)?;
            Pair { a: a(shared, &label)?, b }
        });
    }
    Ok(pairs)
}

/// Of one figure over all pairs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Ratios {
    pub median: f64,
    pub least: f64,
    pub most: f64,
    pub all: Vec<f64>,
}

impl Ratios {
    /// Pairs with nothing to divide by are left out.
    pub fn of<A, B>(pairs: &[Pair<A, B>], ratio: impl Fn(&Pair<A, B>) -> f64) -> Self {
        let all: Vec<f64> = pairs.iter().map(ratio).filter(|it| it.is_finite()).collect();
        if all.is_empty() {
            return Self::default();
        }
        Self {
            median: median(&all),
            least: all.iter().copied().fold(f64::INFINITY, f64::min),
            most: all.iter().copied().fold(0.0, f64::max),
            all,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_take_turns_and_who_is_first_alternates() {
        let note = |order: &mut String, name: char, value: f64| {
            order.push(name);
            Ok(value)
        };
        let mut order = String::new();
        let a = |order: &mut String, _: &str| note(order, 'a', 2.0);
        let b = |order: &mut String, _: &str| note(order, 'b', 3.0);
        let pairs = measure(&mut order, 3, a, b).unwrap();
        assert_eq!(order, "abbaab");
        assert!(pairs.iter().all(|pair| [pair.a, pair.b] == [2.0, 3.0]));
    }

    #[test]
    fn ratios_have_a_median_and_two_ends() {
        let pairs: Vec<Pair<f64, f64>> =
            [(1.0, 2.0), (1.0, 1.0), (2.0, 1.0), (0.0, 1.0)].map(|(a, b)| Pair { a, b }).into();
        let ratios = Ratios::of(&pairs, |pair| pair.b / pair.a);
        assert_eq!((ratios.median, ratios.least, ratios.most), (1.0, 0.5, 2.0));
        assert_eq!(ratios.all.len(), 3);
    }
}
