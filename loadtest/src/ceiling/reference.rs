//! What a reference machine's kernel charges: 2 virtual cores, Linux 6.18, `send(2)` of one message
//! per call over loopback, server and client pinned to a core each, nobody more than a message
//! behind. Medians of three.

/// Connections, and nanoseconds of server CPU per delivery by payload as in [`PAYLOADS`].
const ROWS: [Row; 3] = [
    Row { connections: 1000.0, ns: [2158.0, 2183.0, 2333.0, 2952.0] },
    Row { connections: 5000.0, ns: [3693.0, 3946.0, 3940.0, 4472.0] },
    Row { connections: 15_000.0, ns: [4372.0, 4647.0, 4497.0, 5049.0] },
];
/// Bytes.
const PAYLOADS: [f64; 4] = [64.0, 256.0, 1024.0, 4096.0];

struct Row {
    connections: f64,
    ns: [f64; 4],
}

/// Deliveries per CPU-second there. Linear in the payload, in the logarithm of the connections, and
/// as at the edge beyond it.
pub fn deliveries_per_cpu_s(connections: usize, payload_bytes: usize) -> f64 {
    let by_payload = ROWS.map(|row| Point {
        x: row.connections.ln(),
        y: interpolate(&points(&row), payload_bytes as f64),
    });
    1e9 / interpolate(&by_payload, (connections.max(1) as f64).ln())
}

#[derive(Copy, Clone)]
struct Point {
    x: f64,
    y: f64,
}

fn points(row: &Row) -> [Point; 4] {
    std::array::from_fn(|idx| Point { x: PAYLOADS[idx], y: row.ns[idx] })
}

/// Points in order of `x`.
fn interpolate(points: &[Point], x: f64) -> f64 {
    let between = points.windows(2).find(|pair| x < pair[1].x);
    match between {
        Some([a, b]) => {
            let share = ((x - a.x) / (b.x - a.x)).max(0.0);
            a.y + share * (b.y - a.y)
        }
        _ => points[points.len() - 1].y,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_the_figures_and_beyond_them() {
        let ns = |connections, payload| 1e9 / deliveries_per_cpu_s(connections, payload);
        let check = |connections, payload, wanted: f64| {
            let got = ns(connections, payload);
            assert!((got - wanted).abs() < 0.5, "{connections} {payload}: {got}, not {wanted}");
        };
        check(1000, 64, 2158.0);
        check(15_000, 4096, 5049.0);
        check(5000, 640, 3943.0);
        check(1000, 16, 2158.0);
        check(10, 64, 2158.0);
        check(100_000, 1 << 20, 5049.0);
        // The geometric mean of two numbers of connections is half way.
        check(2236, 64, (2158.0 + 3693.0) / 2.0);
    }
}
