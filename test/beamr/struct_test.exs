defmodule Beamr.StructTest do
  use Beamr.Case, async: true

  alias Beamr.{CallError, MemoryError, Struct, StructError, Trap}

  doctest Beamr.Struct

  # The structs of test/guests/structs.c.

  defmodule Point do
    use Beamr.Struct

    layout do
      field :x, :f64
      field :y, :f64
    end
  end

  defmodule Line do
    use Beamr.Struct

    layout do
      field :ends, {:array, Point, 2}
      field :label, {:string, 5}
    end
  end

  defmodule Person do
    use Beamr.Struct

    layout do
      field :age, :u8
      field :name, {:string, 16}
      field :home, Point
      field :scores, {:array, :i16, 3}
      field :active, :bool
      field :color, {:enum, [red: 0, green: 5, blue: 6]}
      field :note, {:ptr, :string}
      field :id, :i64
      field :ratio, :f32
      field :mood, :i8
    end
  end

  defmodule Header do
    use Beamr.Struct

    layout packed: true, struct: false do
      field :tag, :u8
      field :length, :u32
      field :check, :u16
    end
  end

  defmodule Number do
    use Beamr.Struct

    layout union: true do
      field :i, :i32
      field :f, :f32
      field :d, :f64
      field :bytes, {:array, :u8, 6}
    end
  end

  defmodule Tagged do
    use Beamr.Struct

    layout do
      field :kind, :u8
      field :as, Number
    end
  end

  defmodule Node do
    use Beamr.Struct

    layout do
      field :value, :u16
      field :next, {:ptr, __MODULE__}
    end
  end

  defmodule Place do
    use Beamr.Struct

    layout do
      field :level, :u8
      field :at, {:ptr, Point}
    end
  end

  defmodule Wide do
    use Beamr.Struct

    layout do
      field :a, :u16
      field :b, :u64
      field :c, :u8
    end
  end

  @modules %{
    "point" => Point,
    "line" => Line,
    "person" => Person,
    "header" => Header,
    "number" => Number,
    "tagged" => Tagged,
    "node" => Node,
    "place" => Place,
    "wide" => Wide
  }

  setup_all do
    :persistent_term.put(__MODULE__, Beamr.compile_file!("test/guests/structs.wasm"))
    on_exit(fn -> :persistent_term.erase(__MODULE__) end)
  end

  defp structs, do: :persistent_term.get(__MODULE__)
  defp guest, do: Beamr.instantiate!(structs())

  defp page do
    wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1))|)
    # Bytes that are seen where they should not be changed.
    :ok = Beamr.IO.fill(wasm, 0, 0xAA, 1024)
    wasm
  end

  # The layout again, made by `new/2` of plain terms, for maps.
  defp plain(Point), do: Struct.new(x: :f64, y: :f64)
  defp plain(Line), do: Struct.new(ends: {:array, plain(Point), 2}, label: {:string, 5})

  defp plain(Person) do
    Struct.new(
      age: :u8,
      name: {:string, 16},
      home: plain(Point),
      scores: {:array, :i16, 3},
      active: :bool,
      color: {:enum, [red: 0, green: 5, blue: 6]},
      note: {:ptr, :string},
      id: :i64,
      ratio: :f32,
      mood: :i8
    )
  end

  describe "what C says" do
    test "of sizes, alignments and offsets is what the layouts say" do
      wasm = guest()

      said =
        for {"" <> name, {:function, %{params: [], results: [:i32]}}} <-
              Beamr.Module.exports(structs()),
            [kind, layout | path] <- [String.split(name, "_")],
            kind in ["sizeof", "alignof", "offsetof"] do
          {:ok, [number]} = Beamr.call(wasm, name, [])
          module = @modules[layout]

          ours =
            case kind do
              "sizeof" -> module.size()
              "alignof" -> module.alignment()
              "offsetof" -> module.offset(Enum.map(path, &step/1))
            end

          assert {name, ours} == {name, number}
          kind
        end

      assert %{"sizeof" => 9, "alignof" => 9, "offsetof" => 31} = Enum.frequencies(said)
    end

    test "of a packed struct" do
      assert {Header.size(), Header.alignment(), Header.offset(:check)} == {7, 1, 5}
    end

    test "the same layouts come of plain terms" do
      for module <- [Point, Line, Person] do
        assert {Struct.size(plain(module)), Struct.alignment(plain(module))} ==
                 {module.size(), module.alignment()}
      end
    end
  end

  defp step(text) do
    case Integer.parse(text) do
      {index, ""} -> index
      :error -> String.to_existing_atom(text)
    end
  end

  describe "a guest in C" do
    test "returns a struct through a hidden first pointer" do
      assert Struct.call(guest(), "make_point", [1.5, -2.5], Point) ==
               {:ok, %Point{x: 1.5, y: -2.5}}
    end

    test "is given structs by value, and its own copies of them" do
      a = %Point{x: 1.0, y: 2.0}
      b = %Point{x: 3.0, y: -4.0}

      assert Struct.call(guest(), "midpoint", [{Point, a}, {Point, b}], Point) ==
               {:ok, %Point{x: 2.0, y: -1.0}}

      line = %Line{ends: [a, b], label: "ab"}
      assert Struct.call(guest(), "begin_of", [{Line, line}], Point) == {:ok, a}
    end

    test "fills in a struct of everything" do
      wasm = guest()

      Beamr.IO.with_string(wasm, "Ada", fn name ->
        assert {:ok, person} = Struct.call(wasm, "make_person", [name, 36], Person, follow: true)

        assert person == %Person{
                 age: 36,
                 name: "Ada",
                 home: %Point{x: 1.5, y: -2.5},
                 scores: [-1, 0, 32_767],
                 active: true,
                 color: :green,
                 note: "a note, in C's own memory",
                 id: -9_000_000_000,
                 ratio: 0.10000000149011612,
                 mood: -3
               }
      end)
    end

    test "sees each field as it was written, by modules and by plain layouts" do
      wasm = guest()
      {:ok, note} = Beamr.IO.write_string(wasm, "from the host")

      person = %Person{
        age: 200,
        name: "Jürgen",
        home: %Point{x: 0.25, y: -0.0},
        scores: [-32_768, 7, 8],
        active: false,
        color: :blue,
        note: note,
        id: -0x8000000000000000,
        ratio: 0.5,
        mood: -128
      }

      assert Struct.call(wasm, "check_person", [{Person, person}], nil) == {:ok, [0]}
      assert Struct.call(wasm, "check_person", [{plain(Person), person}], nil) == {:ok, [0]}

      assert Struct.call(wasm, "check_person", [{Person, %{person | mood: 0}}], nil) ==
               {:ok, [10]}
    end

    test "changes a struct in place" do
      wasm = guest()

      Beamr.IO.with_alloc(wasm, Person.size(), fn pointer ->
        :ok = Person.write(wasm, pointer, %Person{age: 9, name: "Tom"})
        {:ok, []} = Beamr.call(wasm, "birthday", [pointer])

        assert Person.read(wasm, pointer) ==
                 {:ok, %Person{age: 10, name: "Tom!", active: true, color: :blue}}
      end)
    end

    test "is given an array of structs" do
      wasm = guest()
      points = for n <- 1..100, do: %Point{x: n / 1, y: -n / 1}

      Beamr.IO.with_alloc(wasm, 100 * Point.size(), fn pointer ->
        :ok = Point.write_array(wasm, pointer, points)
        assert Point.read_array(wasm, pointer, 100) == {:ok, points}

        assert Struct.call(wasm, "sum_points", [pointer, 100], Point) ==
                 {:ok, %Point{x: 5050.0, y: -5050.0}}
      end)
    end

    test "reads a packed struct where no field is aligned" do
      assert Struct.call(
               guest(),
               "header_sum",
               [{:pointer, Header, %{tag: 1, length: 2 ** 31, check: 65_535}}],
               nil
             ) == {:ok, [-(2 ** 31) + 65_536]}
    end

    test "takes and returns a union" do
      wasm = guest()
      double = &Struct.call(wasm, "double_it", [{Tagged, %Tagged{kind: &1, as: &2}}], Tagged)
      assert {:ok, %Tagged{as: %{i: -42}}} = double.(0, %{i: -21})
      assert {:ok, %Tagged{as: %{f: 0.5}}} = double.(1, %{f: 0.25})
      assert {:ok, %Tagged{as: %{d: 1.0e300}}} = double.(2, %{d: 5.0e299})
      assert {:ok, %Tagged{as: %{i: 33_818_120}}} = double.(0, %{bytes: [4, 3, 2, 1, 0, 0]})
    end

    test "has a list whose pointers are followed one at a time" do
      wasm = guest()
      {:ok, [list]} = Beamr.call(wasm, "make_list", [3], unsigned: true)

      assert {:ok, %Node{value: 3, next: %Node{value: 2, next: next}}} =
               Node.read(wasm, list, follow: true)

      assert {:ok, %Node{value: 1, next: nil}} = Node.read(wasm, next, follow: true)
      assert {:ok, %Node{value: 1, next: 0}} = Node.read(wasm, next)
      assert {:ok, 2} = Node.read_field(wasm, Node.read!(wasm, list).next, :value)
    end

    test "passes a struct of one number as that number" do
      wasm = guest()
      meters = Struct.new(value: :f64)
      step = Struct.new(by: :i8)
      flag = Struct.new(on: :bool)
      nested = Struct.new(inner: {:array, meters, 1})
      handle = Struct.new(pointer: :ptr)

      assert Struct.call(
               wasm,
               "add_meters",
               [{meters, %{value: 1}}, {meters, %{value: 0.5}}],
               meters
             ) ==
               {:ok, %{value: 1.5}}

      assert Struct.call(wasm, "turn", [{step, %{by: -7}}], step) == {:ok, %{by: 7}}
      assert Struct.call(wasm, "turn", [{step, %{by: -128}}], step) == {:ok, %{by: -128}}
      assert Struct.call(wasm, "flip", [{flag, %{on: false}}], flag) == {:ok, %{on: true}}
      assert Struct.call(wasm, "flip", [{flag, %{on: true}}], flag) == {:ok, %{on: false}}

      assert Struct.call(wasm, "half", [{nested, %{inner: [%{value: 5}]}}], nested) ==
               {:ok, %{inner: [%{value: 2.5}]}}

      assert Struct.call(wasm, "high_handle", [{handle, %{pointer: 8}}], handle) ==
               {:ok, %{pointer: 0x80000008}}

      assert Struct.call(wasm, "half", [{nested, %{inner: [%{value: :nan}]}}], nested) ==
               {:ok, %{inner: [%{value: :nan}]}}

      assert Struct.call(wasm, "meters_at", [{:pointer, meters, %{value: 2.5}}], nil) ==
               {:ok, [2.5]}
    end

    test "is called by the name of a server" do
      server = :"#{__MODULE__}.#{System.unique_integer()}"
      start_supervised!({Beamr.Server, module: structs(), name: server})
      assert Struct.call(server, "make_point", [1, 2], Point) == {:ok, %Point{x: 1.0, y: 2.0}}
      pointer = Beamr.IO.malloc!(server, Point.size())
      assert Point.write(server, pointer, %Point{x: 1.0}) == :ok
      assert Point.update(server, pointer, %{y: 2.0}) == :ok
      assert Point.read(server, pointer) == {:ok, %Point{x: 1.0, y: 2.0}}
    end

    test "gets its room back, however a call ends" do
      wasm = guest()
      point = [{Point, %Point{}}]
      assert {:ok, _} = Struct.call(wasm, "midpoint", point ++ point, Point)
      assert {:error, %CallError{reason: :arity}} = Struct.call(wasm, "midpoint", point, Point)
      assert {:error, %StructError{}} = Struct.call(wasm, "midpoint", [{Point, %{x: 1}}], Point)

      assert {:error, %CallError{reason: :unknown_function}} =
               Struct.call(wasm, "no", point, Point)

      assert {:error, %Trap{reason: :memory_out_of_bounds}} =
               Struct.call(wasm, "sum_points", [2 ** 31, 1], Point)

      assert Beamr.IO.held_count(wasm) == {:ok, 0}
    end

    test "may be given its room by an allocator" do
      wasm = guest()
      stack = Beamr.Allocator.Stack.new!(wasm, base: 0x40000)

      assert Struct.call(wasm, "make_point", [1, 2], Point, allocator: stack) ==
               {:ok, %Point{x: 1.0, y: 2.0}}

      assert Beamr.Allocator.Stack.used(stack) == {:ok, 0}
      assert {:ok, %{allocated: 16, active: 0}} = Beamr.Allocator.stats(stack)
    end

    test "that answers what is no struct is an error" do
      pair = Struct.new(a: :i32, b: :i32)
      wasm = Beamr.instantiate!(~s|(module (memory (export "memory") 1)
        (func (export "malloc") (param i32) (result i32) (i32.const 8))
        (func (export "free") (param i32))
        (func (export "f") (param i32) (result i32) (i32.const 3)))|)

      assert {:error, %CallError{reason: :result, function: "f", given: [3]}} =
               Struct.call(wasm, "f", [], pair)
    end
  end

  describe "layouts" do
    test "align each field, and the whole" do
      layout = Struct.new(a: :u8, b: :u16, c: :u8, d: :u64, e: :u8)
      offsets = for field <- [:a, :b, :c, :d, :e], do: Struct.offset(layout, field)
      assert offsets == [0, 2, 4, 8, 16]
      assert {Struct.size(layout), Struct.alignment(layout)} == {24, 8}
    end

    test "have 64-bit pointers where they are told to" do
      fields = [a: :u8, p: :ptr, q: {:ptr, :string}, s: {:struct, p: :ptr}]
      assert Struct.size(Struct.new(fields)) == 16
      assert Struct.size(Struct.new(fields, pointers: 64)) == 32

      module = Beamr.compile!(~s|(module (memory (export "memory") i64 1))|)
      assert Struct.size(Struct.new(fields, pointers: module)) == 32
      assert Struct.size(Struct.new(fields, pointers: Beamr.instantiate!(module))) == 32
      assert Struct.size(Struct.new(fields, pointers: Beamr.compile!("(module)"))) == 16
    end

    test "that cannot be are refused with the reason" do
      for {fields, opts, message} <- [
            {[], [], ~r/at least one byte/},
            {[a: {:array, :u8, 0}], [], ~r/at least one byte/},
            {[a: :u8, a: :u8], [], ~r/two fields :a/},
            {[a: :i24], [], ~r/unknown type: :i24/},
            {[a: "i32"], [], ~r/unknown type: "i32"/},
            {[a: {:array, :u8, -1}], [], ~r/unknown type/},
            {[a: {:string, 0}], [], ~r/unknown type/},
            {[a: {:enum, :u8, [b: 256]}], [], ~r/no u8 value: {:b, 256}/},
            {[{:a, :u8, [offset: -1]}], [], ~r/the offset of :a/},
            {[{:a, :u32}, {:b, :u8, [offset: 3]}], [], ~r/the fields :a, :b overlap/},
            {[{"a", :u8}], [], ~r/a field is/},
            {[a: :u8], [packed: 1], ~r/:packed must be true or false/},
            {[a: :u8], [pointers: 16], ~r/:pointers must be 32, 64/},
            {[a: :u8], [unknown: 1], ~r/unknown/}
          ] do
        assert_raise ArgumentError, message, fn -> Struct.new(fields, opts) end
      end
    end

    test "may overlap where they say so" do
      layout = Struct.new([{:word, :u32}, {:high, :u16, offset: 2}, {:end, :u8}], overlap: true)
      assert Struct.size(layout) == 8

      assert Struct.encode(layout, %{word: 0x01020304, end: 9}) ==
               {:ok, <<4, 3, 2, 1, 9, 0, 0, 0>>}

      assert Struct.encode(layout, %{high: 0x0102, end: 9}) == {:ok, <<0, 0, 2, 1, 9, 0, 0, 0>>}

      assert Struct.encode(layout, %{word: nil, high: nil, end: 9}) ==
               {:ok, <<0, 0, 0, 0, 9, 0, 0, 0>>}

      assert Struct.decode(layout, <<4, 3, 2, 1, 9, 0, 0, 0>>) ==
               %{word: 0x01020304, high: 0x0102, end: 9}

      assert {:error, %StructError{reason: :overlap, field: [:high], wanted: :word}} =
               Struct.encode(layout, %{word: 1, high: 2, end: 9})
    end

    test "say what is not there" do
      assert_raise StructError, "the layout has no field home.z", fn ->
        Person.offset([:home, :z])
      end

      assert {:error, %StructError{reason: :unknown_field, field: [:scores, 3]}} =
               Person.read_field(page(), 0, [:scores, 3])

      assert_raise ArgumentError, "not a layout: Beamr.StructTest", fn ->
        Struct.size(__MODULE__)
      end

      assert_raise ArgumentError, "16 bytes are wanted, given: 3", fn -> Point.decode("abc") end
    end
  end

  describe "values" do
    test "NaN, the infinities and -0.0 survive a round trip" do
      for module <- [Point, plain(Point)],
          x <- [:nan, :infinity, :neg_infinity, -0.0, 1.0e-310] do
        bytes = Struct.encode!(module, %{x: x, y: 1.5})
        assert %{x: ^x, y: 1.5} = Struct.decode(module, bytes)
        <<binary::64, _::64>> = bytes
        <<again::64, _::64>> = Struct.encode!(module, Struct.decode(module, bytes))
        assert again == binary
      end
    end

    test "3.14 as an f32 is the f32 next to it" do
      layout = Struct.new(x: :f32)
      assert Struct.decode(layout, Struct.encode!(layout, %{x: 3.14})) == %{x: 3.140000104904175}
    end

    test "a large f32 is refused where it rounds to infinity, and not before" do
      layout = Struct.new(x: :f32)

      assert {:ok, <<0xFF, 0xFF, 0x7F, 0x7F>>} =
               Struct.encode(layout, %{x: 3.4028235677973362e38})

      for x <- [3.4028235677973366e38, -1.0e300, 10 ** 39, 10 ** 400] do
        assert {:error, %StructError{reason: :range, field: [:x], given: ^x}} =
                 Struct.encode(layout, %{x: x})
      end
    end

    test "an integer outside its type is refused with the field and the range" do
      for {type, low, high} <- [
            {:i8, -128, 127},
            {:u8, 0, 255},
            {:i16, -32_768, 32_767},
            {:u16, 0, 65_535},
            {:i32, -(2 ** 31), 2 ** 31 - 1},
            {:u32, 0, 2 ** 32 - 1},
            {:i64, -(2 ** 63), 2 ** 63 - 1},
            {:u64, 0, 2 ** 64 - 1},
            {:ptr, 0, 2 ** 32 - 1}
          ] do
        layout = Struct.new(n: {:struct, m: type})

        for n <- [low, high] do
          assert Struct.decode(layout, Struct.encode!(layout, %{n: %{m: n}})) == %{n: %{m: n}}
        end

        for n <- [low - 1, high + 1, 2 ** 100] do
          assert {:error, %StructError{reason: :range, field: [:n, :m], given: ^n} = error} =
                   Struct.encode(layout, %{n: %{m: n}})

          assert {_type, {^low, ^high}} = error.wanted
        end
      end
    end

    test "of the wrong kind are refused with the field" do
      good = %Person{}

      for {change, reason, field} <- [
            {%{age: 1.5}, :type, [:age]},
            {%{name: String.duplicate("x", 16)}, :length, [:name]},
            {%{name: "a\0b"}, :nul, [:name]},
            {%{name: ~c"Tom"}, :type, [:name]},
            {%{home: %{x: 1, y: nil}}, :type, [:home, :y]},
            {%{home: %{x: 1}}, :missing_field, [:home, :y]},
            {%{home: %{x: 1, y: 2, z: 3}}, :unknown_field, [:home, :z]},
            {%{home: 7}, :type, [:home]},
            {%{scores: [1, 2]}, :length, [:scores]},
            {%{scores: [1, 2 | 3]}, :length, [:scores]},
            {%{scores: [1, 2, 40_000]}, :range, [:scores, 2]},
            {%{active: 1}, :type, [:active]},
            {%{color: :pink}, :type, [:color]},
            {%{color: 2 ** 31}, :range, [:color]},
            {%{note: -1}, :range, [:note]},
            {%{note: "text"}, :type, [:note]},
            {%{ratio: :inf}, :type, [:ratio]}
          ],
          layout <- [Person, plain(Person)] do
        assert {:error, %StructError{reason: ^reason, field: ^field} = error} =
                 Struct.encode(layout, Map.merge(good, change))

        assert Exception.message(error) =~ Enum.join(field, ".")
      end

      assert {:error, %StructError{reason: :unknown_field, field: [:nick]}} =
               Struct.encode(Person, Map.put(good, :nick, ""))

      assert {:error, %StructError{reason: :missing_field, field: [:mood]}} =
               Struct.encode(Person, Map.delete(good, :mood))
    end

    test "an integer that is no name of an enum is read, and written, as it is" do
      layout = Struct.new(color: {:enum, :u8, red: 0, rouge: 0, green: 5})
      assert Struct.decode(layout, <<5>>) == %{color: :green}
      assert Struct.decode(layout, <<0>>) == %{color: :red}
      assert Struct.decode(layout, <<9>>) == %{color: 9}
      assert Struct.encode(layout, %{color: 9}) == {:ok, <<9>>}
      assert Struct.encode(layout, %{color: :rouge}) == {:ok, <<0>>}
    end

    test "a char[n] is read to its NUL, or to its end" do
      layout = Struct.new(name: {:string, 4}, raw: {:bytes, 2})
      assert Struct.decode(layout, "ab\0c\0d") == %{name: "ab", raw: "\0d"}
      assert Struct.decode(layout, "abcdef") == %{name: "abcd", raw: "ef"}
      assert Struct.encode(layout, %{name: "abc", raw: "ef"}) == {:ok, "abc\0ef"}

      assert {:error, %StructError{reason: :length, field: [:raw]}} =
               Struct.encode(layout, %{name: "", raw: "e"})
    end

    test "any byte but 0 is true" do
      layout = Struct.new(b: :bool)
      assert Struct.decode(layout, <<0>>) == %{b: false}
      assert Struct.decode(layout, <<2>>) == %{b: true}
    end

    test "an Elixir struct is what plain layouts read into where they say so" do
      layout = Struct.new([host: {:string, 8}, port: :u16], struct: URI)

      assert %URI{host: "a", port: 80} =
               Struct.decode(layout, Struct.encode!(layout, %{host: "a", port: 80}))
    end

    test "a fresh struct has zeros" do
      assert %Line{} == %Line{ends: [%Point{x: 0.0, y: 0.0}, %Point{x: 0.0, y: 0.0}], label: ""}
      assert %Tagged{} == %Tagged{kind: 0, as: %Number{i: nil, f: nil, d: nil, bytes: nil}}
      assert Tagged.encode(%Tagged{}) == {:ok, <<0::128>>}
    end
  end

  describe "reading and writing" do
    test "padding is written as zeros, and nothing outside of the struct" do
      wasm = page()
      assert Wide.write(wasm, 8, %Wide{a: 0xFFFF, b: 2 ** 64 - 1, c: 0xFF}) == :ok

      assert Beamr.IO.read!(wasm, 7, 26) ==
               <<0xAA, 0xFFFF::16, 0::48, -1::64, 0xFF, 0::56, 0xAA>>
    end

    test "update/5 leaves all other bytes as they are, padding too" do
      wasm = page()
      assert Wide.update(wasm, 0, %{c: 1, a: 2}) == :ok

      assert Beamr.IO.read!(wasm, 0, 24) ==
               <<2, 0, 0xAAAAAAAAAAAA::48, 0xAAAAAAAAAAAAAAAA::64, 1, 0xAAAAAAAAAAAAAA::56>>
    end

    test "update/5 is all or nothing" do
      wasm = page()

      assert {:error, %StructError{reason: :range, field: [:b]}} =
               Wide.update(wasm, 0, %{a: 1, b: -1})

      assert {:error, %StructError{reason: :unknown_field, field: [:d]}} =
               Wide.update(wasm, 0, %{a: 1, d: 1})

      assert {:error, %MemoryError{reason: :out_of_bounds}} =
               Wide.update(wasm, 65_536 - 16, %{a: 1, c: 1})

      assert Beamr.IO.read!(wasm, 0, 2) == <<0xAAAA::16>>
      assert Beamr.IO.read!(wasm, 65_536 - 16, 2) == <<0, 0>>
      assert Wide.update(wasm, 0, %{}) == :ok
    end

    test "two that update other fields of one struct lose nothing" do
      wasm = page()
      layout = Struct.new(a: :u8, b: :u8)

      tasks =
        for field <- [:a, :b] do
          Task.async(fn ->
            for n <- 1..2000 do
              :ok = Struct.update(wasm, 0, layout, %{field => rem(n, 256)})
              {:ok, read} = Struct.read_field(wasm, 0, layout, field)
              assert read == rem(n, 256)
            end
          end)
        end

      Task.await_many(tasks, 30_000)
    end

    test "write_field/6 writes the bytes of one field" do
      wasm = page()
      assert Person.write_field(wasm, 0, [:home, :y], 0.0) == :ok
      offset = Person.offset([:home, :y])
      assert <<0xAA, 0::64, 0xAA>> = Beamr.IO.read!(wasm, offset - 1, 10)
      assert Person.write_field(wasm, 0, [:scores, 1], -2) == :ok
      assert Person.read_field(wasm, 0, [:scores, 1]) == {:ok, -2}

      assert {:error, %StructError{reason: :range, field: [:scores, 1]}} =
               Person.write_field(wasm, 0, [:scores, 1], 32_768)

      assert {:error, %StructError{reason: :unknown_field, field: [:scores, :x]}} =
               Person.write_field(wasm, 0, [:scores, :x], 0)
    end

    test "out of memory is an error with pointer, length and size, and nothing is written" do
      wasm = page()

      for result <- [
            Point.read(wasm, 65_528),
            Point.write(wasm, 65_528, %Point{}),
            Point.read_array(wasm, 65_504, 3)
          ] do
        assert {:error, %MemoryError{reason: :out_of_bounds, size: 65_536}} = result
      end

      assert {:error, %MemoryError{offset: 65_528, length: 16}} = Point.read(wasm, 65_528)
      assert {:error, %MemoryError{}} = Point.read(wasm, 2 ** 70)
      assert {:error, %MemoryError{}} = Point.read_array(wasm, 0, 2 ** 70)
      assert {:error, %MemoryError{}} = Point.write_array(wasm, 65_528, [%Point{x: 1.0}])
      assert Beamr.IO.read!(wasm, 65_528, 8) == <<0::64>>
      assert Point.read_array(wasm, 65_536, 0) == {:ok, []}
      assert Point.write_array(wasm, 65_536, []) == :ok
    end

    test "an array that has a value that does not fit says which, and writes none" do
      wasm = page()

      assert {:error, %StructError{reason: :type, field: [1, :y]}} =
               Point.write_array(wasm, 0, [%Point{}, %Point{y: :no}])

      assert Beamr.IO.read!(wasm, 0, 8) == <<0xAAAAAAAAAAAAAAAA::64>>
    end

    test "the memory may be another, and one of 64 bits" do
      wasm =
        Beamr.instantiate!("""
        (module (memory (export "memory") 1) (memory (export "big") i64 1)
          (data (memory 1) (i64.const 64) "text\\00"))
        """)

      layout = Struct.new([n: :u8, text: {:ptr, :string}], pointers: 64)
      assert Struct.write(wasm, 0, layout, %{n: 7, text: 64}, memory: "big") == :ok

      assert Struct.read(wasm, 0, layout, memory: "big", follow: true) ==
               {:ok, %{n: 7, text: "text"}}

      assert Struct.read(wasm, 0, layout) == {:ok, %{n: 0, text: 0}}

      assert Struct.write(wasm, 0, layout, %{n: 1, text: 2 ** 63}, memory: "big") == :ok

      assert {:error, %MemoryError{reason: :out_of_bounds, offset: 0x8000000000000000}} =
               Struct.read(wasm, 0, layout, memory: "big", follow: true)
    end

    test "a pointer that leads nowhere is no error until it is followed" do
      wasm = page()
      :ok = Place.write(wasm, 0, %Place{at: 65_535})
      assert {:ok, %Place{at: 65_535}} = Place.read(wasm, 0)
      assert {:error, %MemoryError{offset: 65_535}} = Place.read(wasm, 0, follow: true)
      assert {:error, %MemoryError{}} = Place.read_field(wasm, 0, :at, follow: true)
      :ok = Place.write(wasm, 0, %Place{at: nil})
      assert {:ok, %Place{at: nil}} = Place.read(wasm, 0, follow: true)
    end

    test "works inside imports" do
      test = self()

      wasm =
        Beamr.instantiate!(
          """
          (module (import "env" "f" (func $f (param i32)))
            (memory (export "memory") 1)
            (func (export "run") (f64.store (i32.const 16) (f64.const 2)) (call $f (i32.const 16))))
          """,
          imports: %{
            "env" => %{
              "f" => fn wasm, pointer ->
                send(test, Point.read(wasm, pointer))
                :ok = Point.update(wasm, pointer, %{y: 3.0})
              end
            }
          }
        )

      assert Beamr.call(wasm, "run", []) == {:ok, []}
      assert_received {:ok, read}
      assert read == %Point{x: 2.0, y: 0.0}
      assert Point.read(wasm, 16) == {:ok, %Point{x: 2.0, y: 3.0}}
    end

    test "wrong arguments are refused by guards" do
      wasm = page()
      assert_raise FunctionClauseError, fn -> Point.read(wasm, -1) end
      assert_raise FunctionClauseError, fn -> Point.write(wasm, 0, x: 1, y: 2) end
      assert_raise FunctionClauseError, fn -> Point.read_array(wasm, 0, -1) end
      assert_raise FunctionClauseError, fn -> Struct.read(untyped("wasm"), 0, Point) end
      assert_raise FunctionClauseError, fn -> Struct.read_field(wasm, 0, Point, [:x | :y]) end
      assert_raise ArgumentError, fn -> Point.read(wasm, 0, follow: 1) end
      assert_raise ArgumentError, fn -> Point.read(wasm, 0, unknown: 1) end
    end

    test "the forms with ! answer the value, or raise the error" do
      wasm = page()
      assert Point.write!(wasm, 0, %Point{x: 1.0}) == :ok
      assert Point.read!(wasm, 0) == %Point{x: 1.0}
      assert Point.update!(wasm, 0, %{y: 2.0}) == :ok
      assert Point.read_field!(wasm, 0, :y) == 2.0
      assert Point.write_field!(wasm, 0, :y, 3.0) == :ok
      assert Point.write_array!(wasm, 0, [%Point{}]) == :ok
      assert Point.read_array!(wasm, 0, 1) == [%Point{}]
      assert Struct.call!(guest(), "make_point", [0, 0], Point) == %Point{}
      assert_raise StructError, fn -> Point.write!(wasm, 0, %{x: 1}) end
      assert_raise StructError, fn -> Point.encode!(%{x: 1}) end
      assert_raise MemoryError, fn -> Point.read!(wasm, 2 ** 40) end
    end
  end

  describe "random layouts" do
    # The model: each value's bytes by themselves, laid where C says.
    test "have the bytes of each field at its offset" do
      for_random_cases(300, fn ->
        {fields, opts, value} = random_struct()
        layout = Struct.new(fields, opts)
        bytes = Struct.encode!(layout, value)
        assert byte_size(bytes) == Struct.size(layout)
        assert Struct.decode(layout, bytes) == value

        for {name, type} <- fields do
          alone = Struct.new([{name, type}])
          offset = Struct.offset(layout, name)
          unless opts[:packed], do: assert(rem(offset, Struct.alignment(alone)) == 0)
          field = Struct.encode!(alone, Map.take(value, [name]))
          assert binary_part(bytes, offset, Struct.size(alone)) == field
        end
      end)
    end

    test "mean the same compiled and not" do
      for_random_cases(20, fn ->
        {fields, opts, _value} = random_struct()
        layout = Struct.new(fields, opts)
        module = compile(fields, opts)

        for _ <- 1..20 do
          value = random_value({:struct, fields})
          bytes = Struct.encode!(layout, value)
          assert module.encode!(value) == bytes
          assert module.decode(bytes) == value
          noise = :rand.bytes(Struct.size(layout))
          assert module.decode(noise) == Struct.decode(layout, noise)
        end

        :code.delete(module)
        :code.purge(module)
      end)
    end
  end

  defp random_struct do
    fields = for n <- 1..random_integer(1, 8), do: {:"f#{n}", random_type(2)}
    {fields, [packed: :rand.uniform(3) == 1], random_value({:struct, fields})}
  end

  defp compile(fields, opts) do
    contents =
      quote do
        use Beamr.Struct

        layout unquote([struct: false] ++ opts) do
          for {name, type} <- unquote(Macro.escape(fields)), do: field(name, type)
        end
      end

    name = Module.concat(__MODULE__, Random)
    {:module, module, _binary, _term} = Module.create(name, contents, Macro.Env.location(__ENV__))
    module
  end

  @scalars [:i8, :u8, :i16, :u16, :i32, :u32, :i64, :u64, :f32, :f64, :bool, :ptr]

  defp random_type(depth) do
    case :rand.uniform(if depth > 0, do: 18, else: 14) do
      n when n <= 12 -> Enum.at(@scalars, n - 1)
      13 -> {:string, random_integer(1, 20)}
      14 -> {:bytes, random_integer(1, 20)}
      n when n <= 16 -> {:array, random_type(depth - 1), random_integer(1, 40)}
      _ -> {:struct, for(n <- 1..random_integer(1, 4), do: {:"g#{n}", random_type(depth - 1)})}
    end
  end

  defp random_value(:bool), do: :rand.uniform(2) == 1
  defp random_value(:ptr), do: random_integer(0, 2 ** 32 - 1)

  defp random_value(:f32) do
    <<x::float-32>> = <<random_float()::float-32>>
    Enum.random([x, :nan, :infinity, :neg_infinity])
  end

  defp random_value(:f64), do: Enum.random([random_float(), :nan, :infinity, :neg_infinity])
  defp random_value({:string, n}), do: String.duplicate("é", div(random_integer(0, n - 1), 2))
  defp random_value({:bytes, n}), do: :rand.bytes(n)
  defp random_value({:array, type, n}), do: for(_ <- 1..n, do: random_value(type))
  defp random_value({:struct, fields}), do: Map.new(fields, fn {n, t} -> {n, random_value(t)} end)

  defp random_value(type) do
    {low, high} = Beamr.IO.integer_range(type)
    random_integer(low, high)
  end

  defp random_float, do: Enum.random([-0.0, 0.0, 1.5, -1.0e30, :rand.uniform() * 1.0e10])
end
