//! Who may come in: sockets, clients, users and addresses, counted over all threads and bounded.
//!
//! Any thread; touched when a connection comes, signs in or ends, never per publication. Each
//! count is held by a permit that gives it back when it is dropped, whatever ends the
//! connection.

use std::borrow::Borrow;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ahash::HashMap;
use parking_lot::Mutex;

use crate::config::{Config, Rate};

/// Sockets over the limit that may be open while idle ones are being closed for them; half of
/// the reserve of descriptors.
const SOCKETS_OVER_MAX: usize = 32;

/// Why a client isn't admitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// `HUB_CONNECTIONS_MAX`: 503.
    ConnectionsMax,
    /// `HUB_CONNECT_RATE`: 503.
    ConnectRate,
    /// `HUB_CONNECTIONS_PER_IP`: 429.
    PerAddress,
}

/// A token bucket as one number: the time at which all that was let through is paid for.
#[derive(Clone, Copy, Default, Debug)]
pub struct Bucket {
    paid_at_us: u64,
}

/// What a bucket says of one more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    Fine,
    Over,
    /// Over by another quarter of what may come at once: whoever does that doesn't listen.
    FarOver,
}

impl Bucket {
    /// Charges one, also when it is over: who goes on regardless gets further over.
    pub fn charge(&mut self, rate: Rate, now_ms: u64) -> Verdict {
        let now_us = now_ms * 1000;
        let cost_us = 1_000_000 / u64::from(rate.per_second);
        let burst_us = 1_000_000 * u64::from(Rate::BURST_S);
        let far_us = burst_us + burst_us / 4;
        // It never runs further ahead than that, so that a client isn't locked out for ever.
        let latest_us = now_us + far_us + cost_us;
        self.paid_at_us = (self.paid_at_us.max(now_us) + cost_us).min(latest_us);
        let ahead_us = self.paid_at_us - now_us;
        if ahead_us > far_us {
            Verdict::FarOver
        } else if ahead_us > burst_us {
            Verdict::Over
        } else {
            Verdict::Fine
        }
    }
}

/// How many connections each key has.
type Counts<K> = Mutex<HashMap<K, u32>>;

fn take<K: Hash + Eq>(counts: &Counts<K>, key: K, max: Option<usize>) -> bool {
    let mut counts = counts.lock();
    let n = counts.entry(key).or_default();
    if max.is_some_and(|max| *n as usize >= max) {
        return false;
    }
    *n += 1;
    true
}

fn give_back<K, Q>(counts: &Counts<K>, key: &Q)
where
    K: Hash + Eq + Borrow<Q>,
    Q: Hash + Eq + ?Sized,
{
    let mut counts = counts.lock();
    if let Some(n) = counts.get_mut(key) {
        *n -= 1;
        if *n == 0 {
            counts.remove(key);
        }
    }
}

/// One node's counts. See the module.
#[derive(Debug)]
pub struct Admission {
    sockets_max: usize,
    connections_max: usize,
    per_user: Option<usize>,
    per_address: Option<usize>,
    connect_rate: Option<Rate>,
    n_sockets: AtomicUsize,
    n_clients: AtomicUsize,
    connects: Mutex<Bucket>,
    /// The anonymous user isn't counted.
    users: Counts<Box<str>>,
    addresses: Counts<IpAddr>,
}

impl Admission {
    pub fn new(config: &Config) -> Arc<Self> {
        Arc::new(Self {
            sockets_max: config.sockets_max(),
            connections_max: config.connections_max,
            per_user: config.connections_per_user,
            per_address: config.connections_per_ip,
            connect_rate: config.connect_rate,
            n_sockets: AtomicUsize::new(0),
            n_clients: AtomicUsize::new(0),
            connects: Mutex::default(),
            users: Mutex::default(),
            addresses: Mutex::default(),
        })
    }

    /// Counts an accepted socket; `None`: there is no descriptor to spare.
    pub fn open_socket(self: &Arc<Self>) -> Option<SocketPermit> {
        let n_sockets = self.n_sockets.fetch_add(1, Ordering::Relaxed);
        let permit = SocketPermit(self.clone());
        (n_sockets < self.sockets_max + SOCKETS_OVER_MAX).then_some(permit)
    }

    /// Whether idle sockets have to go for new ones.
    pub fn is_crowded(&self) -> bool {
        self.n_sockets() > self.sockets_max
    }

    pub fn n_sockets(&self) -> usize {
        self.n_sockets.load(Ordering::Relaxed)
    }

    /// Counts a client at its upgrade.
    pub fn admit(self: &Arc<Self>, address: IpAddr, now_ms: u64) -> Result<ClientPermit, Refused> {
        let is_full = self.n_clients.fetch_add(1, Ordering::Relaxed) >= self.connections_max;
        let mut permit = ClientPermit { admission: self.clone(), address: None };
        if is_full {
            return Err(Refused::ConnectionsMax);
        }
        if self.per_address.is_some() {
            let block = block_of(address);
            if !take(&self.addresses, block, self.per_address) {
                return Err(Refused::PerAddress);
            }
            permit.address = Some(Box::new(block));
        }
        // Last, so that only those who are let in are charged.
        if let Some(rate) = self.connect_rate {
            let mut connects = self.connects.lock();
            let before = *connects;
            if connects.charge(rate, now_ms) != Verdict::Fine {
                *connects = before;
                return Err(Refused::ConnectRate);
            }
        }
        Ok(permit)
    }

    /// Counts a connection of a user; `None`: the user has as many as one may have.
    pub fn admit_user(self: &Arc<Self>, name: &str) -> Option<UserPermit> {
        take(&self.users, name.into(), self.per_user)
            .then(|| UserPermit { admission: self.clone(), name: name.into() })
    }

    /// Users with a connection; all anonymous ones are one.
    pub fn n_users(&self) -> usize {
        let users = self.users.lock();
        let n_named: usize = users.values().map(|n| *n as usize).sum();
        users.len() + usize::from(self.n_clients.load(Ordering::Relaxed) > n_named)
    }
}

/// What counts as one address: whoever has one IPv6 address has its whole /64.
fn block_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

/// A socket of a listener, while it is open.
#[derive(Debug)]
pub struct SocketPermit(Arc<Admission>);

impl Drop for SocketPermit {
    fn drop(&mut self) {
        self.0.n_sockets.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An upgraded client.
#[derive(Debug)]
pub struct ClientPermit {
    admission: Arc<Admission>,
    address: Option<Box<IpAddr>>,
}

impl Drop for ClientPermit {
    fn drop(&mut self) {
        self.admission.n_clients.fetch_sub(1, Ordering::Relaxed);
        if let Some(address) = &self.address {
            give_back(&self.admission.addresses, &**address);
        }
    }
}

/// A signed-in connection of a user.
#[derive(Debug)]
pub struct UserPermit {
    admission: Arc<Admission>,
    name: Box<str>,
}

impl UserPermit {
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for UserPermit {
    fn drop(&mut self) {
        give_back(&self.admission.users, &*self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Machine;

    fn admission(change: impl FnOnce(&mut Config)) -> Arc<Admission> {
        let machine = Machine { cores: 1, open_files_max: 1024, memory_bytes: 1 << 30 };
        let mut config = Config::defaults(machine);
        change(&mut config);
        Admission::new(&config)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_bucket_takes_a_burst_then_the_rate_then_loses_patience() {
        let rate = Rate { per_second: 100 };
        let mut bucket = Bucket::default();
        let verdicts: Vec<Verdict> = (0..2_002).map(|_| bucket.charge(rate, 0)).collect();
        let count = |verdict| verdicts.iter().filter(|other| **other == verdict).count();
        assert_eq!((count(Verdict::Fine), count(Verdict::Over)), (1_000, 1_000));
        assert_eq!(bucket.charge(rate, 60_000), Verdict::Fine, "not for ever");
        let steady = (0..10_000).all(|n| bucket.charge(rate, 60_000 + n * 10) == Verdict::Fine);
        assert!(steady, "the rate itself can go on for ever");
    }

    #[test]
    fn clients_are_counted_while_they_last() {
        let admission = admission(|config| config.connections_max = 2);
        let ip = address("10.0.0.1");
        let first = admission.admit(ip, 0).expect("room");
        let _second = admission.admit(ip, 0).expect("room");
        assert_eq!(admission.admit(ip, 0).err(), Some(Refused::ConnectionsMax));
        assert_eq!(admission.admit(ip, 0).err(), Some(Refused::ConnectionsMax), "not counted");
        drop(first);
        assert!(admission.admit(ip, 0).is_ok());
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let admission = admission(|config| config.connections_per_ip = Some(1));
        let admit = |text: &str| admission.admit(address(text), 0);
        let kept = [admit("2001:db8::1"), admit("2001:db8:0:1::1"), admit("10.0.0.1")];
        assert!(kept.iter().all(Result::is_ok));
        assert_eq!(admit("2001:db8::ffff").err(), Some(Refused::PerAddress));
        assert_eq!(admit("::ffff:10.0.0.1").err(), Some(Refused::PerAddress));
        drop(kept);
        assert!(admit("2001:db8::ffff").is_ok());
        assert!(admission.addresses.lock().is_empty(), "nothing is left behind");
    }

    #[test]
    fn users_are_counted() {
        let admission = admission(|config| config.connections_per_user = Some(2));
        let anonymous = admission.admit(address("::1"), 0);
        assert_eq!(admission.n_users(), 1);
        let clients: Vec<_> = (0..2).map(|_| admission.admit(address("::1"), 0)).collect();
        let users: Vec<_> = (0..2).map(|_| admission.admit_user("42").expect("room")).collect();
        assert!(admission.admit_user("42").is_none());
        assert_eq!(admission.n_users(), 2);
        drop((anonymous, clients, users));
        assert_eq!((admission.n_users(), admission.users.lock().len()), (0, 0));
    }

    #[test]
    fn the_connect_rate_charges_only_who_comes_in() {
        let admission = admission(|config| config.connect_rate = Some(Rate { per_second: 1 }));
        let ip = address("10.0.0.1");
        let n_in = (0..1_000).filter(|_| admission.admit(ip, 0).is_ok()).count();
        assert_eq!(n_in, 10);
        assert!(admission.admit(ip, 1_000).is_ok(), "one second, one more");
        assert_eq!(admission.admit(ip, 1_000).err(), Some(Refused::ConnectRate));
    }
}
