//! What is said to a query: bytes in, a decision out.
//!
//! Formats: RFC 1035 (messages), 2308 (negative answers), 6891 (EDNS), 9619 (one question).

use std::net::IpAddr;

use domain::base::iana::{Class, Opcode, OptRcode, Rcode, Rtype};
use domain::base::message_builder::AdditionalBuilder;
use domain::base::{Message, MessageBuilder, Question, Record, Serial, StaticCompressor, ToName, Ttl};
use domain::rdata::{A, Aaaa, Ns, Ptr, Soa, ZoneRecordData};

use super::zone::{Client, Entry, Foreign, Name, Zone, prefixed};

/// Nobody keeps what we say: a name is there as soon as its VM is, and no longer.
const TTL: Ttl = Ttl::ZERO;

/// The largest message over UDP that passes any link in one piece, and so what we say we take.
const UDP: u16 = 1232;

/// The largest one without EDNS.
const PLAIN_UDP: u16 = 512;

/// The largest query that is read. Names have at most 255 bytes; the rest is room for EDNS.
pub const MAX_QUERY: usize = 4096;

type Data = ZoneRecordData<Vec<u8>, Name>;
type Answer = AdditionalBuilder<StaticCompressor<Vec<u8>>>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Not worth an answer: no query, or one that would make us answer answers.
    Drop,
    Answer(Vec<u8>),
    /// The host's resolver knows.
    Forward(Foreign),
}

/// Decides about one message.
pub fn answer(query: &[u8], client: Client, zone: &Zone) -> Decision {
    let Ok(message) = Message::from_slice(query) else { return Decision::Drop };
    if message.header().qr() {
        return Decision::Drop;
    }
    let question = match check(message) {
        Ok(question) => question,
        Err(refusal) => return Decision::Answer(error(message, refusal)),
    };
    match zone.find(question.qname()) {
        Some(entry) => Decision::Answer(local(message, &question, &entry, zone.domain())),
        None => {
            // What may not leave, names shall not leave either; and the host asking us for what its own
            // resolver knows could go round in circles.
            let foreign = match client {
                Client::Guest(guest) => zone.foreign(guest, question.qname()),
                Client::Host => None,
            };
            foreign.map_or_else(|| Decision::Answer(error(message, OptRcode::REFUSED)), Decision::Forward)
        }
    }
}

/// What is said to questions that are one, such as for the addresses of both families: whether there is such a name, and
/// its records, each as in a message, without compression. `None`: one of them is not about our names.
pub fn records(questions: &[Question<Name>], zone: &Zone) -> Option<(Rcode, Vec<Vec<u8>>)> {
    let (mut exists, mut records) = (false, Vec::new());
    for question in questions {
        let entry = zone.find(question.qname())?;
        exists |= entry.records.is_some();
        for data in found(question, &entry, zone.domain()) {
            let mut record = Vec::new();
            let Ok(()) = Record::new(question.qname(), Class::IN, TTL, data).compose(&mut record);
            records.push(record);
        }
    }
    Some((if exists { Rcode::NOERROR } else { Rcode::NXDOMAIN }, records))
}

/// The addresses elsewhere that an answer has for the name it was asked for, directly or by other names,
/// and for how many seconds.
pub fn addresses(answer: &[u8]) -> Vec<(IpAddr, u32)> {
    let parse = || {
        let message = Message::from_slice(answer).ok()?;
        let name = message.canonical_name()?;
        let mut found = Vec::new();
        for record in message.answer().ok()?.limit_to_in::<A>().flatten() {
            if record.owner() == &name {
                found.push((IpAddr::V4(record.data().addr()), record.ttl().as_secs()));
            }
        }
        for record in message.answer().ok()?.limit_to_in::<Aaaa>().flatten() {
            if record.owner() == &name {
                found.push((IpAddr::V6(record.data().addr()), record.ttl().as_secs()));
            }
        }
        Some(found)
    };
    let mut found = parse().unwrap_or_default();
    found.retain(|(address, _)| is_elsewhere(*address));
    found
}

/// Whether an address means the same to everybody, so that a name can stand for it: whose name it is shall not
/// open what is next to the host, such as a cloud's metadata service.
fn is_elsewhere(address: IpAddr) -> bool {
    let is_here = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.to_ipv4_mapped().is_some(),
    };
    !(is_here || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

/// The message to give up with.
pub fn failure(query: &[u8]) -> Option<Vec<u8>> {
    Message::from_slice(query).ok().map(|message| error(message, OptRcode::SERVFAIL))
}

/// As much of an answer as whoever asked can take over UDP: all of it, or word that there is more.
pub fn fit(answer: Vec<u8>, query: &[u8]) -> Vec<u8> {
    let Ok(message) = Message::from_slice(query) else { return answer };
    let asked = message.opt().map_or(PLAIN_UDP, |opt| opt.udp_payload_size().clamp(PLAIN_UDP, UDP));
    if answer.len() <= asked.into() {
        return answer;
    }
    let mut short = error(message, OptRcode::NOERROR);
    if let (Some(short), Some(full)) = (short.get_mut(2..4), answer.get(2..4)) {
        short.copy_from_slice(full);
        short[0] |= 0b10; // TC
    }
    short
}

/// The one question of a query that is well-formed and not beyond us.
fn check(message: &Message<[u8]>) -> Result<Question<Name>, OptRcode> {
    if message.header().opcode() != Opcode::QUERY {
        return Err(OptRcode::NOTIMP);
    }
    let counts = message.header_counts();
    // Room for EDNS and a signature. Bounds what a lie about the length can make us do, too.
    if (counts.qdcount(), counts.ancount(), counts.nscount()) != (1, 0, 0) || counts.arcount() > 2 {
        return Err(OptRcode::FORMERR);
    }
    let question = message.sole_question().map_err(|_| OptRcode::FORMERR)?;
    let additional = message.additional().map_err(|_| OptRcode::FORMERR)?;
    let mut opts = 0;
    for record in additional {
        opts += usize::from(record.map_err(|_| OptRcode::FORMERR)?.rtype() == Rtype::OPT);
    }
    if opts > 1 || (opts == 1 && message.opt().is_none()) {
        return Err(OptRcode::FORMERR);
    }
    if message.opt().is_some_and(|opt| opt.version() > 0) {
        return Err(OptRcode::BADVERS);
    }
    let transfer = matches!(question.qtype(), Rtype::AXFR | Rtype::IXFR);
    if question.qclass() != Class::IN || transfer {
        return Err(OptRcode::REFUSED);
    }
    let name: Name = question.qname().to_name();
    // Only an answer has a name before its question to point at.
    if message.as_slice().get(12..12 + name.len()) != Some(name.as_slice()) {
        return Err(OptRcode::FORMERR);
    }
    Ok(Question::new(name, question.qtype(), question.qclass()))
}

/// What there is by a name of ours, or why there is nothing.
fn local(message: &Message<[u8]>, question: &Question<Name>, entry: &Entry<'_>, host: &Name) -> Vec<u8> {
    let rcode = if entry.records.is_some() { Rcode::NOERROR } else { Rcode::NXDOMAIN };
    let mut answer = start(message).start_error(message, rcode);
    answer.header_mut().set_aa(true);
    let found = found(question, entry, host);
    for data in &found {
        // Fails only beyond the 64 KiB that a message can have.
        let _ = answer.push((question.qname(), TTL, data));
    }
    let mut authority = answer.authority();
    if found.is_empty() {
        // How long the name is not there, which is no time at all.
        let _ = authority.push((entry.top, TTL, soa(host)));
    }
    finish(authority.additional(), message, None)
}

/// The records that a question is about.
fn found(question: &Question<Name>, entry: &Entry<'_>, host: &Name) -> Vec<Data> {
    let (name, rtype) = (question.qname(), question.qtype());
    let asked = |which: Rtype| rtype == which || rtype == Rtype::ANY;
    let mut found = Vec::new();
    let Some(records) = entry.records else { return found };
    for address in &records.addresses {
        match address {
            IpAddr::V4(address) if asked(Rtype::A) => found.push(A::new(*address).into()),
            IpAddr::V6(address) if asked(Rtype::AAAA) => found.push(Aaaa::new(*address).into()),
            _ => {}
        }
    }
    if let Some(pointer) = records.pointer.as_ref().filter(|_| asked(Rtype::PTR)) {
        found.push(Ptr::new(pointer.clone()).into());
    }
    if name == entry.top && asked(Rtype::NS) {
        found.push(Ns::new(host.clone()).into());
    }
    if name == entry.top && asked(Rtype::SOA) {
        found.push(soa(host).into());
    }
    found
}

fn error(message: &Message<[u8]>, rcode: OptRcode) -> Vec<u8> {
    // Of what cannot be read, nothing is repeated.
    let readable = message.header_counts().qdcount() == 1 && message.sole_question().is_ok();
    let mut answer = if readable {
        start(message).start_error(message, rcode.rcode())
    } else {
        let mut builder = start(message);
        let header = builder.header_mut();
        header.set_id(message.header().id());
        header.set_opcode(message.header().opcode());
        header.set_rd(message.header().rd());
        header.set_qr(true);
        header.set_rcode(rcode.rcode());
        builder.answer()
    };
    answer.header_mut().set_aa(false);
    finish(answer.additional(), message, Some(rcode))
}

fn start(message: &Message<[u8]>) -> MessageBuilder<StaticCompressor<Vec<u8>>> {
    let target = StaticCompressor::new(Vec::with_capacity(PLAIN_UDP.into()));
    let mut builder = MessageBuilder::from_target(target).expect("a Vec has room for a header");
    let header = builder.header_mut();
    header.set_ra(true);
    header.set_cd(message.header().cd());
    builder
}

/// Who speaks EDNS is answered in it.
fn finish(mut answer: Answer, message: &Message<[u8]>, rcode: Option<OptRcode>) -> Vec<u8> {
    if let Some(asked) = message.opt() {
        let _ = answer.opt(|opt| {
            opt.set_udp_payload_size(UDP);
            opt.set_dnssec_ok(asked.dnssec_ok());
            if let Some(rcode) = rcode {
                opt.set_rcode(rcode);
            }
            Ok(())
        });
    }
    answer.finish().into_target()
}

/// No other server copies these zones, so only the last figure means anything: how long whoever asks
/// may believe that there is no such name.
fn soa(host: &Name) -> Soa<Name> {
    let contact = prefixed(b"hostmaster", host).unwrap_or_else(|| host.clone());
    let hour = Ttl::from_hours(1);
    Soa::new(host.clone(), contact, Serial(1), hour, hour, hour, TTL)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use domain::rdata::Cname;
    use proptest::prelude::*;

    use super::*;
    use crate::dns::zone::Outside;

    const GUEST: Client = Client::Guest(IpAddr::V4(Ipv4Addr::new(10, 209, 0, 2)));
    const CLOSED: Client = Client::Guest(IpAddr::V4(Ipv4Addr::new(10, 209, 0, 3)));

    fn zone() -> Zone {
        let domain = "banger.internal".parse().expect("a name");
        let gateways = ["10.209.0.1/16", "fd00::1/64"].map(|text| text.parse().expect("a network"));
        let mut zone = Zone::new(domain, &gateways);
        zone.put("web", &[[10, 209, 0, 2].into()], &Outside::ALL);
        // Without a name of its own.
        zone.put("closed.", &[[10, 209, 0, 3].into()], &Outside::NOTHING);
        zone.put("six", &[[10, 209, 0, 6].into(), "fd00::6".parse().expect("an address")], &Outside::ALL);
        zone
    }

    fn query(name: &str, rtype: Rtype) -> Vec<u8> {
        let name: Name = name.parse().expect("a name");
        let mut builder = MessageBuilder::new_vec().question();
        builder.header_mut().set_id(4711);
        builder.header_mut().set_rd(true);
        builder.push((name, rtype)).expect("fits");
        builder.finish()
    }

    fn with_edns(query: &[u8], version: u8) -> Vec<u8> {
        let message = Message::from_slice(query).expect("a message");
        let mut builder = MessageBuilder::new_vec().question();
        *builder.header_mut() = message.header();
        builder.push(message.sole_question().expect("one")).expect("fits");
        let mut builder = builder.additional();
        let filled = builder.opt(|opt| {
            opt.set_udp_payload_size(4096);
            opt.set_version(version);
            opt.set_dnssec_ok(true);
            Ok(())
        });
        filled.expect("fits");
        builder.finish()
    }

    /// The answer in dig's words, without those about the clock.
    fn said(query: &[u8], client: Client) -> String {
        let Decision::Answer(answer) = answer(query, client, &zone()) else { return "nothing".into() };
        let message = Message::from_slice(&answer).expect("a message");
        assert_eq!(message.header().id(), Message::from_slice(query).expect("a message").header().id());
        assert!(message.header().qr() && message.header().ra());
        let mut said = vec![message.opt_rcode().to_string()];
        if message.header().aa() {
            said.push("aa".into());
        }
        let (_, answers, authority, _) = message.sections().expect("whole");
        for record in answers.chain(authority) {
            let record = record.expect("whole");
            let record = record.to_any_record::<domain::rdata::AllRecordData<_, _>>().expect("known");
            said.push(format!("{} {} {}", record.owner(), record.rtype(), record.data()));
            assert_eq!(record.ttl(), Ttl::ZERO);
        }
        said.join("; ")
    }

    const SOA: &str = "SOA banger.internal. hostmaster.banger.internal. 1 3600 3600 3600 0";

    #[test]
    fn names_of_guests_and_nothing_else_of_the_domain() {
        let ask = |name, rtype| said(&query(name, rtype), GUEST);
        assert_eq!(ask("web.banger.internal", Rtype::A), "NOERROR; aa; web.banger.internal A 10.209.0.2");
        assert_eq!(ask("WEB.banger.INTERNAL", Rtype::ANY), "NOERROR; aa; WEB.banger.INTERNAL A 10.209.0.2");
        assert_eq!(ask("six.banger.internal", Rtype::AAAA), "NOERROR; aa; six.banger.internal AAAA fd00::6");
        let both = "NOERROR; aa; six.banger.internal A 10.209.0.6; six.banger.internal AAAA fd00::6";
        assert_eq!(ask("six.banger.internal", Rtype::ANY), both);
        let pointer = "NOERROR; aa; 2.0.209.10.in-addr.arpa PTR web.banger.internal.";
        assert_eq!(ask("2.0.209.10.in-addr.arpa", Rtype::PTR), pointer);
        for rtype in [Rtype::AAAA, Rtype::TXT, Rtype::HTTPS, Rtype::from_int(65280)] {
            let nothing = format!("NOERROR; aa; banger.internal {SOA}");
            assert_eq!(ask("web.banger.internal", rtype), nothing);
        }
        assert_eq!(ask("db.banger.internal", Rtype::A), format!("NXDOMAIN; aa; banger.internal {SOA}"));
        let reverse = format!("NXDOMAIN; aa; 209.10.in-addr.arpa {SOA}");
        assert_eq!(ask("9.9.209.10.in-addr.arpa", Rtype::PTR), reverse);
        assert_eq!(ask("banger.internal", Rtype::SOA), format!("NOERROR; aa; banger.internal {SOA}"));
        assert_eq!(ask("banger.internal", Rtype::NS), "NOERROR; aa; banger.internal NS banger.internal.");
        assert_eq!(ask("banger.internal", Rtype::A), "NOERROR; aa; banger.internal A 10.209.0.1");
    }

    #[test]
    fn everything_else_is_asked_only_for_those_who_may_leave() {
        let outside = query("example.org", Rtype::from_int(65280));
        assert_eq!(answer(&outside, GUEST, &zone()), Decision::Forward(Foreign::Answer));
        assert_eq!(said(&outside, CLOSED), "REFUSED");
        assert_eq!(said(&outside, Client::Host), "REFUSED");
        let inside = query("web.banger.internal", Rtype::A);
        for client in [CLOSED, Client::Host] {
            assert_eq!(said(&inside, client), "NOERROR; aa; web.banger.internal A 10.209.0.2");
        }
    }

    #[test]
    fn what_is_wrong_is_told_and_answers_are_not_answered() {
        let plain = query("web.banger.internal", Rtype::A);
        let changed = |at: usize, value: u8| {
            let mut query = plain.clone();
            query[at] = value;
            query
        };
        assert_eq!(answer(&changed(2, 0x80), GUEST, &zone()), Decision::Drop);
        assert_eq!(answer(&plain[..11], GUEST, &zone()), Decision::Drop);
        assert_eq!(said(&changed(2, 0x28), GUEST), "NOTIMP");
        // Two questions, an answer, too many further records, a question cut off, one that points at itself.
        for (at, value) in [(5, 2), (7, 1), (9, 1), (11, 3), (12, 63)] {
            assert_eq!(said(&changed(at, value), GUEST), "FORMERR", "{at}");
        }
        let mut looped = plain.clone();
        looped.splice(12.., [0xc0, 12, 0, 1, 0, 1]);
        assert_eq!(said(&looped, GUEST), "FORMERR");
        // One that points into its own header.
        looped.splice(12.., [0xc0, 4, 0, 1, 0, 1]);
        assert_eq!(said(&looped, GUEST), "FORMERR");
        assert_eq!(said(&changed(plain.len() - 1, 3), GUEST), "REFUSED");
        assert_eq!(said(&query("banger.internal", Rtype::AXFR), GUEST), "REFUSED");
        assert_eq!(said(&with_edns(&plain, 1), GUEST), "BADVERS");
    }

    #[test]
    fn who_speaks_edns_is_answered_in_it() {
        let plain = query("web.banger.internal", Rtype::A);
        for (query, speaks) in [(plain.clone(), false), (with_edns(&plain, 0), true)] {
            let Decision::Answer(answer) = answer(&query, GUEST, &zone()) else { panic!("an answer") };
            let message = Message::from_slice(&answer).expect("a message");
            let opt = message.opt().map(|opt| (opt.udp_payload_size(), opt.version(), opt.dnssec_ok()));
            assert_eq!(opt, speaks.then_some((1232, 0, true)));
        }
    }

    #[test]
    fn what_does_not_fit_is_cut_to_word_of_it() {
        let plain = query("example.org", Rtype::TXT);
        let answer = |size: usize| {
            let mut answer = plain.clone();
            answer[2] |= 0x80;
            answer.resize(size, 0);
            answer
        };
        let cut = |answer: Vec<u8>, query: &[u8]| {
            let fitted = fit(answer.clone(), query);
            let message = Message::from_octets(fitted.clone()).expect("a message");
            assert_eq!(message.header().tc(), fitted != answer);
            if message.header().tc() {
                assert_eq!(message.opt().is_some(), Message::from_slice(query).expect("one").opt().is_some());
                assert!(message.is_answer(Message::from_slice(query).expect("a message")));
            }
            message.header().tc()
        };
        assert!(!cut(answer(512), &plain) && cut(answer(513), &plain));
        let edns = with_edns(&plain, 0);
        assert!(!cut(answer(1232), &edns) && cut(answer(1233), &edns));
    }

    #[test]
    fn every_answer_of_ours_fits_without_edns() {
        let domain = vec!["a".repeat(32); 3].join(".");
        let gateways = ["10.0.0.1/8".parse().expect("a network")];
        let mut zone = Zone::new(domain.parse().expect("a name"), &gateways);
        let longest = "x".repeat(63);
        zone.put(&longest, &[[10, 255, 255, 254].into()], &Outside::ALL);
        let unknown = format!("{}.{}", vec!["y".repeat(30); 4].join("."), domain.to_ascii_uppercase());
        for name in [&unknown, &format!("{longest}.{domain}"), "254.255.255.10.in-addr.arpa"] {
            for rtype in [Rtype::ANY, Rtype::TXT] {
                let Decision::Answer(answer) = answer(&with_edns(&query(name, rtype), 0), GUEST, &zone)
                else {
                    panic!("an answer")
                };
                assert!(answer.len() <= 512, "{name}: {}", answer.len());
            }
        }
    }

    /// An answer to a question for `asked`.
    fn answered(asked: &str, records: &[(&str, u32, &str)]) -> Vec<u8> {
        let mut builder = MessageBuilder::new_vec().question();
        builder.header_mut().set_qr(true);
        let name = |text: &str| text.parse::<Name>().expect("a name");
        builder.push((name(asked), Rtype::A)).expect("fits");
        let mut builder = builder.answer();
        for (owner, ttl, data) in records {
            let (owner, ttl) = (name(owner), Ttl::from_secs(*ttl));
            match data.parse() {
                Ok(IpAddr::V4(address)) => builder.push((owner, ttl, A::new(address))),
                Ok(IpAddr::V6(address)) => builder.push((owner, ttl, Aaaa::new(address))),
                Err(_) => builder.push((owner, ttl, Cname::new(name(data)))),
            }
            .expect("fits");
        }
        builder.finish()
    }

    #[test]
    fn addresses_are_those_of_the_name_that_was_asked_for() {
        let found = |records: &[(&str, u32, &str)]| {
            let found = addresses(&answered("Www.example.org", records));
            found.iter().map(|(address, ttl)| format!("{address} {ttl}")).collect::<Vec<_>>().join(", ")
        };
        let one = ("www.example.ORG", 60, "192.0.2.1");
        assert_eq!(found(&[one, ("www.example.org", 7, "2001:db8::1")]), "192.0.2.1 60, 2001:db8::1 7");
        let (alias, other) = (("www.example.org", 5, "cdn.example.net"), ("x.example.net", 9, "192.0.2.2"));
        assert_eq!(found(&[other, alias, ("cdn.example.net", 6, "x.example.net")]), "192.0.2.2 9");
        // About something else, in a circle, or next to whoever asks.
        assert_eq!(found(&[one, ("evil.example", 60, "192.0.2.66")]), "192.0.2.1 60");
        assert_eq!(found(&[alias, ("cdn.example.net", 5, "www.example.org")]), "");
        for here in [
            "127.0.0.1",
            "0.0.0.0",
            "169.254.169.254",
            "224.0.0.1",
            "::1",
            "fe80::1",
            "ff02::1",
            "::ffff:10.0.0.1",
        ] {
            assert_eq!(found(&[("www.example.org", 60, here)]), "", "{here}");
        }
        let whole = answered("www.example.org", &[one]);
        for length in 0..whole.len() {
            assert_eq!(addresses(&whole[..length]), []);
        }
    }

    proptest! {
        /// Whatever comes, what goes is a whole message about the same thing, and not much bigger.
        #[test]
        fn no_bytes_are_too_odd(
            start in prop_oneof![
                Just(query("web.banger.internal", Rtype::A)),
                Just(with_edns(&query("2.0.209.10.in-addr.arpa", Rtype::PTR), 0)),
                proptest::collection::vec(any::<u8>(), 0..600),
            ],
            edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            cut in any::<prop::sample::Index>(),
            whole in any::<bool>(),
        ) {
            let mut query = start;
            if !query.is_empty() {
                for (at, value) in edits {
                    let at = at.index(query.len());
                    query[at] = value;
                }
                if !whole {
                    query.truncate(cut.index(query.len()));
                }
            }
            for client in [GUEST, CLOSED, Client::Host] {
                if let Decision::Answer(answer) = answer(&query, client, &zone()) {
                    let message = Message::from_slice(&answer).expect("a message");
                    prop_assert!(message.header().qr());
                    prop_assert_eq!(&answer[..2], &query[..2]);
                    prop_assert!(message.sections().is_ok());
                    prop_assert!(answer.len() <= query.len() + 200, "{} for {}", answer.len(), query.len());
                }
            }
            let _ = (failure(&query), fit(query.clone(), &query), addresses(&query));
        }
    }
}
