//! Who a peer is, as far as it has proved that.

/// What a peer was authenticated as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// It has the key of a certificate that the CA signed, with these names: the subject's common names, then the DNS
    /// names among the alternative ones.
    Certificate(Vec<String>),
    /// It has the pre-shared key of this name.
    PreSharedKey(String),
}
