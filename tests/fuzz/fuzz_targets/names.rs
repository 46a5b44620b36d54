//! DNS queries of guests. What is answered is a message, about the same thing, and not much longer.
#![no_main]

#[path = "../../../services/netd/src/dns"]
#[allow(dead_code)]
mod dns {
    pub mod answer;
    pub mod zone;
}

use std::sync::LazyLock;

use dns::answer::{Decision, addresses, answer, failure, fit};
use dns::zone::{Client, Outside, Zone};
use domain::base::Message;

static ZONE: LazyLock<Zone> = LazyLock::new(|| {
    let gateways = ["10.209.0.1/16", "fd00::1/64"].map(|text| text.parse().expect("a network"));
    let mut zone = Zone::new("banger.internal".parse().expect("a name"), &gateways);
    let addresses = [[10, 209, 0, 2].into(), "fd00::2".parse().expect("an address")];
    zone.put("web", &addresses, &Outside { all: true, names: Vec::new() });
    zone
});

libfuzzer_sys::fuzz_target!(|query: &[u8]| {
    let guest = ZONE.client([10, 209, 0, 2].into()).expect("a guest");
    for client in [guest, Client::Host] {
        if let Decision::Answer(answer) = answer(query, client, &ZONE) {
            assert_eq!(answer[..2], query[..2]);
            assert!(Message::from_slice(&answer).expect("a message").sections().is_ok());
            assert!(answer.len() <= query.len() + 200);
        }
    }
    // What comes back from outside is cut to what was asked for.
    if let Some((at, rest)) = query.split_first() {
        let (query, answer) = rest.split_at(rest.len().min(usize::from(*at)));
        let _ = (fit(answer.to_vec(), query), failure(query), addresses(answer));
    }
});
