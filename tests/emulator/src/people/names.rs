//! The words that people, companies and addresses are made of.

#[rustfmt::skip]
pub(super) const FIRST: [&str; 32] = [
    "Ada", "Alan", "Barbara", "Bjarne", "Charles", "Claude", "Dennis", "Donald", "Dorothy", "Edgar",
    "Edsger", "Frances", "Grace", "Guido", "Hedy", "Ivan", "James", "Jean", "John", "Joan", "Karen",
    "Ken", "Leslie", "Linus", "Margaret", "Mary", "Niklaus", "Radia", "Robin", "Shafi", "Tony", "Whitfield",
];
#[rustfmt::skip]
pub(super) const LAST: [&str; 64] = [
    "Lovelace", "Turing", "Liskov", "Stroustrup", "Babbage", "Shannon", "Ritchie", "Knuth", "Vaughan",
    "Codd", "Dijkstra", "Allen", "Hopper", "Rossum", "Lamarr", "Sutherland", "Gosling", "Bartik",
    "Backus", "Clarke", "Jones", "Thompson", "Lamport", "Torvalds", "Hamilton", "Jackson", "Wirth",
    "Perlman", "Milner", "Goldwasser", "Hoare", "Diffie", "Hellman", "Merkle", "Rivest", "Adleman",
    "Cerf", "Kahn", "Postel", "Baran", "Davies", "Roberts", "Engelbart", "Kay", "Ingalls", "Wilkes",
    "Wheeler", "Gill", "Strachey", "Scott", "Landin", "Reynolds", "Plotkin", "Tarjan", "Hopcroft",
    "Karp", "Cook", "Levin", "Blum", "Yao", "Valiant", "Micali", "Pearl", "Gray",
];
#[rustfmt::skip]
pub(super) const TITLES: [&str; 8] = [
    "Engineer", "Head of Sales", "Chief Executive", "Buyer", "Analyst", "Office Manager", "Architect", "Consultant",
];
/// City, state, postal code, country.
pub(super) const PLACES: [(&str, &str, &str, &str); 12] = [
    ("Boston", "Massachusetts", "02108", "United States"),
    ("Austin", "Texas", "73301", "United States"),
    ("Denver", "Colorado", "80202", "United States"),
    ("Toronto", "Ontario", "M5H 2N2", "Canada"),
    ("London", "England", "EC1A 1BB", "United Kingdom"),
    ("Leeds", "England", "LS1 1UR", "United Kingdom"),
    ("Berlin", "Berlin", "10115", "Germany"),
    ("Hamburg", "Hamburg", "20095", "Germany"),
    ("Lyon", "Auvergne-Rhone-Alpes", "69001", "France"),
    ("Madrid", "Madrid", "28001", "Spain"),
    ("Oslo", "Oslo", "0150", "Norway"),
    ("Vienna", "Vienna", "1010", "Austria"),
];
#[rustfmt::skip]
pub(super) const STREETS: [&str; 10] = [
    "Main Street", "High Street", "Church Road", "Station Road", "Park Avenue", "Mill Lane", "Oak Drive",
    "River Walk", "Market Square", "Harbour View",
];
#[rustfmt::skip]
pub(super) const TRADES: [&str; 16] = [
    "Systems", "Software", "Logistics", "Foods", "Energy", "Textiles", "Consulting", "Media", "Optics",
    "Robotics", "Paper", "Steel", "Travel", "Health", "Insurance", "Books",
];
