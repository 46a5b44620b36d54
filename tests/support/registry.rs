//! Registries of a test's own: Debian's docker-registry over what the lab's registry holds, with
//! TLS, with a password, or with tokens.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;
use tempfile::TempDir;

use crate::{eventually, sh};

/// Who may enter where a password is asked for.
pub const USER: &str = "ali";
pub const PASSWORD: &str = "open sesame";
/// `USER:PASSWORD` in base64.
pub const PAIR: &str = "YWxpOm9wZW4gc2VzYW1l";
/// The same as htpasswd(1) writes it, by bcrypt.
const HTPASSWD: &str = "ali:$2b$04$nEZdZ34cWUlYxq6FYDlzAeEnA39BMAzIC.Puk/ihiur6WwFww5g2u\n";

/// Is exchanged for tokens, as the password is.
pub const IDENTITY: &str = "aladdin's lamp";

/// Who may enter.
#[derive(Debug, Clone, Copy)]
pub enum Door<'a> {
    Open,
    Password,
    Token(&'a Tokens),
}

/// Whether TLS is spoken.
#[derive(Debug, Clone, Copy)]
pub enum Wire<'a> {
    Plain,
    Tls(&'a Authority),
    /// Only with those who have a certificate of the authority.
    MutualTls(&'a Authority),
}

/// A registry that ends with the test.
#[derive(Debug)]
pub struct Registry {
    pub port: u16,
    child: Child,
    _dir: TempDir,
}

impl Registry {
    pub fn start(wire: Wire, door: Door) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::write(dir.path().join("htpasswd"), HTPASSWD).expect("writes");
        let port = free_port();
        let mut config = json!({
            "version": 0.1,
            "log": {"level": "error"},
            "storage": {
                "filesystem": {"rootdirectory": "/var/lib/docker-registry"},
                "maintenance": {"readonly": {"enabled": true}},
            },
            "http": {"addr": format!(":{port}")},
        });
        match door {
            Door::Open => {}
            Door::Password => {
                config["auth"] = json!({"htpasswd": {"realm": "lab", "path": dir.path().join("htpasswd")}});
            }
            Door::Token(tokens) => {
                config["auth"] = json!({"token": {
                    "realm": format!("http://localhost:{}/token", tokens.port),
                    "service": "lab", "issuer": "lab", "rootcertbundle": tokens.authority.certificate(),
                }});
            }
        }
        if let Wire::Tls(authority) | Wire::MutualTls(authority) = wire {
            let (certificate, key) = authority.sign("server");
            config["http"]["tls"] = json!({"certificate": certificate, "key": key});
            if let Wire::MutualTls(_) = wire {
                config["http"]["tls"]["clientcas"] = json!([authority.certificate()]);
            }
        }
        // JSON is YAML, too.
        let path = dir.path().join("config.yml");
        std::fs::write(&path, config.to_string()).expect("writes");
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("docker-registry starts");
        eventually("the registry listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { port, child, _dir: dir }
    }

    /// `HOST:PORT` of this registry by a name that means this host.
    pub fn at(&self, host: &str) -> String {
        format!("{host}:{}", self.port)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("binds").port()
}

/// An authority that signs certificates for the names of this host.
#[derive(Debug)]
pub struct Authority(TempDir);

impl Authority {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        sh(&format!(
            "cd {} && openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=authority \
             -keyout ca.key -out ca.crt 2>&1",
            dir.path().display()
        ))
        .ok();
        Self(dir)
    }

    pub fn certificate(&self) -> PathBuf {
        self.0.path().join("ca.crt")
    }

    /// A certificate and its key.
    pub fn sign(&self, name: &str) -> (PathBuf, PathBuf) {
        let dir = self.0.path();
        sh(&format!(
            "cd {} && openssl req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr 2>&1 &&
             printf 'subjectAltName=DNS:lab,DNS:localhost,IP:127.0.0.1' > {name}.ext &&
             openssl x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 \
             -extfile {name}.ext -out {name}.crt 2>&1",
            dir.display()
        ))
        .ok();
        (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")))
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

/// Gives out tokens that docker-registry believes, to those who know the password or have the identity
/// token.
/// <https://distribution.github.io/distribution/spec/auth/jwt/>
#[derive(Debug)]
pub struct Tokens {
    pub port: u16,
    /// How many have been given out.
    pub given: Arc<AtomicUsize>,
    authority: Authority,
}

impl Tokens {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
        let port = listener.local_addr().expect("bound").port();
        let (given, authority) = (Arc::new(AtomicUsize::new(0)), Authority::new());
        let (counter, dir) = (given.clone(), authority.0.path().to_owned());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (counter, dir) = (counter.clone(), dir.clone());
                std::thread::spawn(move || drop(answer(&stream, &counter, &dir)));
            }
        });
        Self { port, given, authority }
    }
}

fn answer(mut stream: &TcpStream, given: &AtomicUsize, dir: &Path) -> std::io::Result<()> {
    let request = request_with_form(stream)?;
    let knows = |line: &str| line.eq_ignore_ascii_case(&format!("authorization: basic {PAIR}"));
    let identity = IDENTITY.replace(' ', "+").replace('\'', "%27");
    let has = request.starts_with("POST ")
        && request.contains("grant_type=refresh_token&")
        && request.contains(&format!("refresh_token={identity}"));
    let (status, body) = if has || request.lines().any(knows) {
        let scope = request.split("repository%3A").nth(1).and_then(|rest| rest.split("%3A").next());
        let repository = scope.unwrap_or_default().replace("%2F", "/");
        let number = given.fetch_add(1, Ordering::SeqCst);
        // The one protocol calls it so, the other so.
        let name = if has { "access_token" } else { "token" };
        ("200 OK", json!({name: token(dir, number, &repository)}).to_string())
    } else {
        ("401 Unauthorized", "{}".to_owned())
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// A request's head, and after it the form that was sent along.
fn request_with_form(stream: &TcpStream) -> std::io::Result<String> {
    let mut lines = BufReader::new(stream.take(1 << 16));
    let mut request = String::new();
    while lines.read_line(&mut request)? > 2 {}
    let length = request
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut form = vec![0; length.unwrap_or(0)];
    lines.read_exact(&mut form)?;
    Ok(request + &String::from_utf8_lossy(&form))
}

/// Signed by openssl.
fn token(dir: &Path, number: usize, repository: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let claims = json!({
        "iss": "lab", "sub": USER, "aud": "lab", "jti": number.to_string(),
        "iat": now, "nbf": now - 60, "exp": now + 300,
        "access": [{"type": "repository", "name": repository, "actions": ["pull"]}],
    });
    std::fs::write(dir.join(format!("claims-{number}")), claims.to_string()).expect("writes");
    let script = format!(
        "cd {dir} && url() {{ base64 -w0 | tr '+/' '-_' | tr -d '='; }}
         x5c=$(openssl x509 -in ca.crt -outform der | base64 -w0)
         head=$(printf '{{\"typ\":\"JWT\",\"alg\":\"RS256\",\"x5c\":[\"%s\"]}}' \"$x5c\" | url)
         body=$(url < claims-{number})
         sign=$(printf '%s.%s' \"$head\" \"$body\" | openssl dgst -sha256 -sign ca.key | url)
         printf '%s.%s.%s' \"$head\" \"$body\" \"$sign\"",
        dir = dir.display()
    );
    sh(&script).ok()
}
